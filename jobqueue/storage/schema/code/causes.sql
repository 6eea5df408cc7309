-- The causes of failures. A column of dead_jobs is computed with it, so it comes before the tables.

-- Return the cause of a failure: a text that is the same for similar failures, so that they can be grouped. The text is
-- made from the last error in the job's history, or from the reason if there is none. "#" replaces the parts that
-- differ between failures: numbers, ids, addresses, tokens, times, quoted values, and the ends of paths. Parts that
-- distinguish causes stay: quoted names (an attribute, a column), status codes, error numbers, and the hosts of URLs.
--
-- The function reads the first 1,000 characters of the error or the reason, and returns up to 200 characters. The rules
-- apply to ASCII characters only, so the result does not depend on the database's locale. The result is stored with
-- dead jobs, so new rules require a new column. jobqueue/testing/causes.py does the same in Python.
CREATE OR REPLACE FUNCTION jobqueue_internal.cause_of(errors jsonb, reason text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET standard_conforming_strings = on
AS $$
DECLARE
    message text := coalesce(nullif(errors -> -1 ->> 'error', ''), reason);
    kept constant text := chr(1);   -- marks the parts to keep; the text's own control characters are replaced first
    cut constant text := chr(2);
    cause text := regexp_replace(left(message, 1000), '[\u0001-\u0020\u007f]+', ' ', 'g') || CASE WHEN length(message) > 1000 THEN cut ELSE '' END;
BEGIN
    -- Replace the path of a URL, but not its host.
    IF strpos(cause, '://') > 0 THEN
        cause := regexp_replace(cause, '([a-z]://[^ /?#"''<>(){}\[\],;|]+)[/?#][^ "''<>(){}\[\],;|]*', '\1/#', 'g');
    END IF;
    IF cause ~ '[''"]' THEN
        -- Mark quoted names of program parts, and quoted HTTP statuses, as parts to keep. Other quoted values are
        -- replaced below. (The first test only saves time.)
        IF cause ~ '[a-z:] [''"](?:[A-Za-z_][A-Za-z0-9_.]*[''"]|[1-5][0-9]{2} [A-Z])' THEN
            cause := regexp_replace(cause,
                '([Ff]ield|[Aa]ttribute|[Aa]rgument|[Pp]arameter|[Oo]ption|[Mm]odule|[Mm]odule named|import name|NameError: name|KeyError:|[Tt]ype|[Cc]lass'
                '|[Mm]ethod|[Ff]unction|[Hh]andler|[Kk]ind|[Cc]olumn|[Rr]elation|[Tt]able|[Cc]onstraint|[Ii]ndex|[Ss]chema|[Rr]ole|[Dd]atabase|[Ee]ncoding'
                '|[Ee]rror|[Rr]esponse) ([''"])((?:[A-Za-z_][A-Za-z0-9_.]*|[1-5][0-9]{2} [A-Z][A-Za-z -]*)[''"])', '\1 \2' || kept || '\3', 'g');
        END IF;
        cause := regexp_replace(cause, '([''"])([A-Za-z_][A-Za-z0-9_.]*[''"] object)', '\1' || kept || '\2', 'g');
        cause := regexp_replace(cause,
            '(?<![A-Za-z0-9_])[bru]?(?:''(?:[^''\u0001\u0002]|''[A-Za-z0-9])*[''\u0002]|"[^"\u0001\u0002]*["\u0002])', '''#''', 'g');
    END IF;
    -- Replace the values in the details of PostgreSQL errors, such as: Key (email)=(...) already exists.
    IF strpos(cause, '=(') > 0 THEN
        cause := regexp_replace(cause, '=\([^()]*\)', '=(#)', 'g');
    END IF;
    IF strpos(cause, '@') > 0 THEN
        cause := regexp_replace(cause, '[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+', '#', 'g');
    END IF;
    IF cause ~ '[0-9]' THEN
        cause := regexp_replace(cause, '([Cc]ode|[Ss]tatus|[Ee]rrno|HTTP|[Ss]ignal|SQLSTATE)([ :=] ?-?)([0-9]{1,5})(?![0-9A-Za-z])', '\1\2' || kept || '\3', 'g');
        cause := regexp_replace(cause,
            '(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?(?![0-9A-Za-z])', '#', 'g');
        -- Replace hexadecimal numbers, and long words that contain a digit (such as UUIDs).
        cause := regexp_replace(cause, '(?<![A-Za-z0-9_\u0001-])(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}', '#', 'g');
        cause := regexp_replace(cause,
            '(?<![A-Za-z0-9_\u0001])(?:0x[0-9A-Fa-f]+|(?=[0-9]*[A-Fa-f])(?=[A-Fa-f]*[0-9])[0-9A-Fa-f]{6,})(?![A-Za-z0-9_])', '#', 'g');
        -- Replace numbers. Inside a word (utf8, S3), replace only long numbers.
        cause := regexp_replace(cause, '(?<![0-9A-Za-z\u0001])-?[0-9]+(?:[.,:][0-9]+)*(?:[eE][-+]?[0-9]+)?|(?<=[A-Za-z])[0-9]{4,}', '#', 'g');
    END IF;
    IF strpos(cause, '/') > 0 THEN
        cause := regexp_replace(cause, '(?<![A-Za-z0-9_.~#/])([.~]*/[A-Za-z0-9_.~#@%+=-]+)(?:/[A-Za-z0-9_.~#@%+=-]+)+/?', '\1/#', 'g');
    END IF;
    cause := regexp_replace(cause, '#(?:[,.:/_-] ?#)+', '#', 'g');
    cause := rtrim(left(ltrim(translate(cause, kept || cut, '')), 200));
    RETURN coalesce(nullif(cause, ''), 'unknown');
END $$;
