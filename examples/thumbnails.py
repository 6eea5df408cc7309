"""Make thumbnails: each job shrinks one image, in another process because this is CPU-bound work.

    jobqueue serve examples.thumbnails

    python -m examples.thumbnails ~/Pictures --out thumbnails

The second command submits all images in a folder and its subfolders, waits, and prints the
outcomes. The service must have access to the same files.
"""

import secrets
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import click
import httpx
import msgspec
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

import jobqueue

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}
"""The supported formats, and their file name suffixes.

Pillow supports more formats, but some of its parsers are not safe for files from strangers.
"""

# A file of a few KiB can contain a GB of pixels. Pillow warns above 89 million pixels, and raises an error at twice as many.
warnings.simplefilter("error", Image.DecompressionBombWarning)

app = jobqueue.App()


@app.handler("thumbnail", cpu=True, timeout=60, max_retries=2)
def thumbnail(path: str, width: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 256, folder: str | None = None) -> dict[str, Any]:
    """Shrink an image to fit into a square: a PNG if any pixel is transparent, otherwise a JPEG.

    If a job runs more than once, it writes the same file again.

    Args:
        path: the image.
        width: the side of the square, in pixels.
        folder: the folder for the thumbnail; by default "thumbnails" next to the image.

    Raises:
        jobqueue.Discard: the file does not exist, or is not a readable image.
    """
    source = Path(path)
    image = shrink(source, width)
    form, suffix = ("PNG", ".png") if image.mode == "RGBA" else ("JPEG", ".jpg")
    target = (source.parent / "thumbnails" if folder is None else Path(folder)) / f"{source.name}.{width}{suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Write under another name first, so that readers never see an unfinished thumbnail.
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        image.save(unfinished, form, icc_profile=image.info.get("icc_profile"))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return {"path": str(target), "width": image.width, "height": image.height, "bytes": target.stat().st_size}


def shrink(source: Path, width: int) -> Image.Image:
    """Read an image; return it small, upright, and in RGB or RGBA."""
    try:
        with Image.open(source, formats=list(FORMATS)) as image:
            image.thumbnail((width, width))  # call this first, so that Pillow can decode a JPEG at a reduced size
            upright = ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise jobqueue.Discard(f"file not found: {source}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise jobqueue.Discard(str(error)) from None
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        if getattr(error, "errno", None) is not None:
            raise  # the disk is at fault, not the image, so another attempt may succeed
        raise jobqueue.Discard(f"not a readable image: {error}") from None
    if upright.mode.startswith("I"):
        upright = upright.point(lambda value: value / 256)  # scale 16 bits per pixel to 8: a plain conversion would clip
    if upright.mode not in {"RGB", "RGBA"}:
        upright.info.pop("icc_profile", None)  # the profile describes colors that the image no longer has
    return upright.convert("RGBA" if upright.has_transparency_data else "RGB")


# ------------------------------------------------------------------------------------------------------------ the second command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source", metavar="FOLDER", type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False, resolve_path=True), default="thumbnails", show_default=True)
@click.option("--width", type=click.IntRange(1, 4096), default=256, show_default=True, help="Side of the square in pixels.")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="URL of the service.")
@click.option("--token", envvar="JOBQUEUE_TOKEN", show_envvar=True, help="The service's token, if it requires one.")
def main(source: Path, out: Path, width: int, url: str, token: str | None) -> None:
    """Make a thumbnail of each image in FOLDER and its subfolders, in the same folder structure."""
    if source.is_relative_to(out):
        raise click.ClickException("--out must be a folder that does not contain the images")
    images = sorted(find_images(source, skip=out))
    if not images:
        raise click.ClickException(f"no images in {source} or its subfolders")
    folders = [out / image.parent.relative_to(source) for image in images]
    jobs = [
        {"kind": "thumbnail", "payload": {"path": str(image), "width": width, "folder": str(folder)}}
        for image, folder in zip(images, folders, strict=True)
    ]
    progress = Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    started = time.monotonic()
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client, progress:
            ids = client.post("/submit", json=jobs).raise_for_status().json()["ids"]
            ended = list(progress.track(follow(client, ids), total=len(ids), description="Thumbnails"))
    except httpx.HTTPError as error:
        reason, _, _ = str(error).partition("\n")
        raise click.ClickException(f"{url}: {reason}") from None
    seconds = time.monotonic() - started
    for image, job in zip(images, ended, strict=True):
        if job["state"] != "succeeded":
            click.echo(f"{job['state']}: {image.relative_to(source)}: {job['reason']}")
    states = Counter(job["state"] for job in ended)
    summary = ", ".join(f"{count} {state}" for state, count in states.most_common())
    click.echo(f"{len(ended)} images: {summary}, in {seconds:.1f} s: {len(ended) / seconds:.0f} images/s")
    if states["lost"]:
        raise SystemExit(1)


def find_images(folder: Path, *, skip: Path) -> Iterator[Path]:
    """Yield the image files in a folder and its subfolders, except for our own thumbnails."""
    suffixes = {suffix for names in FORMATS.values() for suffix in names}
    for path in folder.rglob("*"):
        if path.suffix.lower() in suffixes and path.is_file() and not path.is_relative_to(skip):
            yield path


def follow(client: httpx.Client, ids: list[str]) -> Iterator[dict[str, Any]]:
    """Yield each job when it has ended, in the order of submission. The jobs run in about the same order."""
    for job_id in ids:
        while (job := look(client, job_id))["state"] in {"pending", "scheduled", "inflight"}:
            time.sleep(0.1)
        yield job


def look(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Return a job. Its state is "lost" if the service does not know it."""
    response = client.get(f"/jobs/{job_id}")
    if response.status_code == httpx.codes.NOT_FOUND:
        return {"state": "lost", "reason": f"the service does not know job {job_id}"}
    job: dict[str, Any] = response.raise_for_status().json()
    return job


if __name__ == "__main__":
    main()
