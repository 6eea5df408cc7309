-- Ids, ranks, and notifications.

-- Return a document of a job in the form in which nodes and clients show it. A user's INSERT can store a document that
-- is nested a thousand levels deep. No reader could decode that document, or a list that contains it. So a text
-- replaces a document that is nested too deeply.
CREATE OR REPLACE FUNCTION jobqueue_internal.shown(document jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN document @? 'strict $.**{110}' THEN '"nested too deeply to be shown"' ELSE document END
$$;

-- Return whether a job waits or runs. This is one statement, so a job that moves during the call is visible in exactly
-- one table.
CREATE OR REPLACE FUNCTION jobqueue_internal.unfinished(job uuid) RETURNS boolean
LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM jobqueue_internal.pending_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue_internal.inflight_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue_internal.blocked_jobs AS j WHERE j.id = job)
        OR EXISTS (SELECT FROM jobqueue_internal.scheduled_jobs AS j WHERE j.id = job);
END $$;

-- Create a version 7 UUID (RFC 9562, 5.7). The first 48 bits are milliseconds since 1970, so ids sort by creation.
-- PostgreSQL 18 has a built-in function for this, but older supported versions do not.
CREATE OR REPLACE FUNCTION jobqueue_internal.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1),
        'hex')::uuid
$$;

-- Return a lower bound for the version 7 UUIDs that are created at this time, to the millisecond. Ids that were created
-- earlier are smaller.
CREATE OR REPLACE FUNCTION jobqueue_internal.uuid7_from(moment timestamptz) RETURNS uuid
LANGUAGE sql STABLE AS $$
    SELECT rpad(lpad(to_hex(floor(least(greatest(extract(epoch FROM moment) * 1000, 0), 281474976710655))::bigint), 12, '0'), 32, '0')::uuid
$$;

-- Return the rank of a job in its queue. aging_interval is NULL for a queue without a row; then the default applies. If
-- the options contain a rank, the function returns that rank.
CREATE OR REPLACE FUNCTION jobqueue_internal.rank_of(available_since timestamptz, priority integer, aging_interval interval, options jsonb)
RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT coalesce(to_timestamp((options -> 'rank')::double precision),
                    available_since - priority * coalesce(aging_interval, '1 second'::interval))
$$;

-- Notify listening nodes that a queue got jobs. The notification contains the best rank of these jobs, so a claim does
-- not have to search among better ranks.
CREATE OR REPLACE FUNCTION jobqueue_internal.wake(queue text, rank timestamptz) RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('jobqueue', extract(epoch FROM rank) || ' ' || queue) $$;
