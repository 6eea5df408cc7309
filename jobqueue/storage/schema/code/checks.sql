-- Check the arguments of SQL calls.

-- The service checks HTTP requests in Python. The functions below check the arguments of SQL calls. Both have the same
-- rules and the same messages, and a test compares them.

-- The rule of each field, by name; a field has the same rule in all functions. "is" names a check of jobqueue_internal.fits, and
-- "from", "to", "but" and "of" are its bounds. "words" ends the message "<field> must be ...". "null": the field can be
-- null, which means the same as a missing field. "excludes" names a field that must not be given together with this
-- one. (The rules are in dollar quotes, where a backslash has the same meaning in every session.)
CREATE OR REPLACE FUNCTION jobqueue_internal.rules() RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$ SELECT $rules${
    "id":              {"is": "uuid", "null": true, "words": "a UUID"},
    "kind":            {"is": "string", "to": 200, "words": "a string of 1 to 200 characters"},
    "payload":         {"is": "payload", "null": true},
    "queue":           {"is": "string", "to": 200, "but": [".", ".."], "words": "a string of 1 to 200 characters, but not \".\" or \"..\""},
    "priority":        {"is": "integer", "from": 0, "to": 1000000, "words": "an integer from 0 to 1000000"},
    "max_retries":     {"is": "integer", "from": 0, "to": 1000, "null": true, "words": "an integer from 0 to 1000"},
    "run_at":          {"is": "instant", "null": true, "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "delay":           {"is": "number", "from": 0, "to": 315360000, "null": true, "excludes": "run_at",
                        "words": "a number of seconds from 0 to 315360000"},
    "timeout":         {"is": "number", "from": 5e-324, "to": 604800, "null": true,
                        "words": "a number of seconds above 0 and up to 604800"},
    "expires_at":      {"is": "instant", "null": true, "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "expires_in":      {"is": "number", "from": 0, "to": 315360000, "null": true, "excludes": "expires_at",
                        "words": "a number of seconds from 0 to 315360000"},
    "group":           {"is": "string", "to": 200, "null": true, "words": "a string of 1 to 200 characters"},
    "weight":          {"is": "number", "from": 0.001, "to": 1000, "null": true, "words": "a number from 0.001 to 1000"},
    "concurrency_key": {"is": "string", "to": 200, "null": true, "words": "a string of 1 to 200 characters"},
    "unique":          {"is": "boolean", "null": true, "words": "true or false"},
    "unique_key":      {"is": "string", "to": 200, "null": true, "words": "a string of 1 to 200 characters"},
    "idempotency_key": {"is": "string", "to": 200, "null": true, "words": "a string of 1 to 200 characters"},
    "traceparent":     {"is": "text", "null": true, "words": "a string in the format of W3C Trace Context; a malformed one is ignored"},
    "tracestate":      {"is": "text", "null": true, "words": "a string in the format of W3C Trace Context; a malformed one is ignored"},

    "name":            {"is": "string", "to": 200, "but": [".", ".."], "words": "a string of 1 to 200 characters, but not \".\" or \"..\""},
    "cron":            {"is": "string", "to": 200,
                        "words": "a string of 1 to 200 characters, such as \"*/5 * * * *\" for every five minutes"},
    "timezone":        {"is": "string", "to": 200, "words": "a string of 1 to 200 characters: the IANA name of a time zone"},
    "missed":          {"is": "one", "of": ["one", "skip", "all"], "words": "one of \"one\", \"skip\" and \"all\""},
    "paused":          {"is": "boolean", "words": "true or false"},

    "aging_interval":  {"is": "number", "from": 0, "to": 86400, "words": "a number of seconds from 0 to 86400, or null for the default, 1"},
    "max_running":     {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null to clear it"},
    "rate":            {"is": "number", "from": 0.00001, "to": 1000000, "words": "a number from 0.00001 to 1000000, or null to clear it"},
    "burst":           {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null to clear it"},
    "key_max_running": {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null for the default, 1"},
    "key_rate":        {"is": "number", "from": 0.00001, "to": 1000000, "words": "a number from 0.00001 to 1000000, or null to clear it"},
    "key_burst":       {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000, or null to clear it"},

    "text":            {"is": "string", "to": 200,
                        "words": "a string of 1 to 200 characters: the start of an id, or a part of the error or the reason"},
    "cause":           {"is": "string", "to": 200, "words": "a string of 1 to 200 characters: a cause that GET /dead/causes returns"},
    "reason":          {"is": "string", "to": 200, "words": "a string of 1 to 200 characters: a part of the reason"},
    "created_after":   {"is": "instant", "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "created_before":  {"is": "instant", "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "died_before":     {"is": "instant", "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "died_after":      {"is": "instant", "words": "a date and time with its UTC offset, such as 2030-01-31T08:00:00Z"},
    "state":           {"is": "some", "of": ["pending", "blocked", "scheduled", "inflight", "succeeded", "cancelled", "dead"],
                        "words": "one of pending, blocked, scheduled, inflight, succeeded, cancelled, dead, or an array of them"},
    "all":             {"is": "one", "of": [true], "words": "true"},

    "max_jobs":        {"is": "integer", "from": 1, "to": 2147483647, "null": true, "words": "an integer of 1 or more"},
    "max_rows":        {"is": "integer", "from": 1, "to": 2147483647, "words": "an integer of 1 or more"},
    "max_causes":      {"is": "integer", "from": 1, "to": 1000000, "words": "an integer from 1 to 1000000"},
    "dry_run":         {"is": "boolean", "words": "true or false"},
    "keep":            {"is": "boolean", "words": "true or false"}
}$rules$::jsonb $$;

-- Parse a time in the format of RFC 3339 with a UTC offset, in the years 1 to 9999. Returns NULL for any other text.
-- The function computes the time from the digits, so the time zone and the DateStyle of the session do not matter.
CREATE OR REPLACE FUNCTION jobqueue_internal.instant(text text) RETURNS timestamptz
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    part constant text[] := regexp_match(text, '^([0-9]{4})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[Tt ]'
        '([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9](?:\.[0-9]+)?)(?:[Zz]|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))$');
    days integer;
BEGIN
    IF part IS NULL OR part[1] = '0000' THEN
        RETURN NULL;
    END IF;
    days := extract(day FROM make_date(part[1]::integer, part[2]::integer, 1) + interval '1 month' - interval '1 day');
    IF part[3]::integer > days THEN
        RETURN NULL;
    END IF;
    RETURN least(greatest(timezone('UTC',
        make_timestamp(part[1]::integer, part[2]::integer, part[3]::integer, part[4]::integer, part[5]::integer, left(part[6], 20)::double precision)
        - coalesce((part[7] || '1')::integer * make_interval(hours => part[8]::integer, mins => part[9]::integer), interval '0')),
        timestamptz '0001-01-01 00:00:00+00'), timestamptz '9999-12-31 23:59:59.999999+00');
END $$;

-- Return the message for an invalid payload; NULL for a valid one. A payload can be nested up to 100 levels deep, and
-- can have up to 1 MiB as JSON without spaces. An integer must fit into 64 bits or have at most 17 significant digits.
-- The second case is for floats: jsonb stores the float 1e20 as 100000000000000000000.
CREATE OR REPLACE FUNCTION jobqueue_internal.payload_fault(payload jsonb) RETURNS text
LANGUAGE plpgsql STABLE AS $$
DECLARE
    most constant integer := 1048576;
    number jsonb;
    too_large boolean;
    document text;
    size integer;
BEGIN
    IF payload @? 'strict $.**{100} ? (@.type() == "array" || @.type() == "object")' THEN
        RETURN 'payload cannot be stored: it is nested more than 100 levels deep';
    END IF;
    IF payload @? 'strict $.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)' THEN
        FOR number IN SELECT jsonb_path_query(payload, 'strict $.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)') LOOP
            too_large := abs(number::numeric) > 1.7976931348623158e308;
            IF scale(number::numeric) = 0 AND (too_large OR length(rtrim(abs(number::numeric)::text, '0')) > 17) THEN
                RETURN format('payload cannot be accepted: the integer %s does not fit into 64 bits: send it as a string', left(number::text, 40));
            ELSIF too_large THEN
                RETURN format('payload cannot be read: the number %s is out of range', left(number::text, 40));
            END IF;
        END LOOP;
    END IF;
    document := payload::text;
    size := octet_length(document);
    IF size > most AND size <= 1.5 * most + 1 THEN
        -- Subtract the spaces that jsonb writes after commas and colons, outside of strings.
        document := regexp_replace(document, $string$"(?:[^"\\]|\\.)*"$string$, '', 'g');
        size := size - octet_length(document) + octet_length(replace(document, ' ', ''));
    END IF;
    IF size > most THEN
        RETURN format('the payload has %s bytes as JSON, and the limit is %s: store the data elsewhere and submit a reference to it', size, most);
    END IF;
    RETURN NULL;
END $$;

-- Return whether a value satisfies a rule. A payload that takes less than 500 bytes as jsonb, and whose numbers fit
-- into 64 bits, needs no closer check. Such a payload cannot be too deep, because 100 levels take 800 bytes. It cannot
-- have more than 1 MiB as JSON, because even a number of 8 bytes has at most 16,383 digits after the point.
CREATE OR REPLACE FUNCTION jobqueue_internal.fits(value jsonb, rule jsonb) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT CASE rule ->> 'is'
        WHEN 'string' THEN jsonb_typeof(value) = 'string' AND length(value #>> '{}') BETWEEN 1 AND (rule -> 'to')::integer
                           AND coalesce(NOT rule -> 'but' @> value, true)
        WHEN 'payload' THEN pg_column_size(value) < 500 AND NOT value @? 'strict $.** ? (@ > 18446744073709551615 || @ < -9223372036854775808)'
                            OR jobqueue_internal.payload_fault(value) IS NULL
        WHEN 'integer' THEN CASE jsonb_typeof(value) WHEN 'number' THEN value BETWEEN rule -> 'from' AND rule -> 'to' AND value::numeric % 1 = 0 END
        WHEN 'number' THEN jsonb_typeof(value) = 'number' AND value BETWEEN rule -> 'from' AND rule -> 'to' AND (value = '0' OR value >= '5e-324')
        WHEN 'instant' THEN jsonb_typeof(value) = 'string' AND jobqueue_internal.instant(value #>> '{}') IS NOT NULL
        WHEN 'boolean' THEN jsonb_typeof(value) = 'boolean'
        WHEN 'text' THEN jsonb_typeof(value) = 'string'
        WHEN 'one' THEN jsonb_typeof(value) <> 'array' AND rule -> 'of' @> value
        WHEN 'some' THEN value <> '[]' AND rule -> 'of' @> value
        WHEN 'uuid' THEN value #>> '{}' ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
    END
$$;

-- Raise an error if one of the objects has an unknown field, or a field that violates its rule. The error has the same
-- message that HTTP returns. The column of the error is the field. If there are several objects, the detail of the
-- error is the position of the object. `what` names the kind of object, such as "a job".
CREATE OR REPLACE FUNCTION jobqueue_internal.refuse_unfit(objects jsonb, what text, known text[]) RETURNS void
LANGUAGE plpgsql STABLE AS $$
DECLARE
    wrong record;
    words text;
BEGIN
    SELECT o.place, f.key AS field, f.value, r.rule INTO wrong
      FROM jsonb_array_elements(objects) WITH ORDINALITY AS o (fields, place)
     CROSS JOIN LATERAL jsonb_each(CASE jsonb_typeof(o.fields) WHEN 'object' THEN o.fields ELSE jsonb_build_object('', o.fields) END) AS f
     CROSS JOIN LATERAL (SELECT jobqueue_internal.rules() -> f.key AS rule OFFSET 0) AS r
     WHERE NOT coalesce(jobqueue_internal.fits(f.value, r.rule), false) AND NOT (f.value = 'null' AND coalesce(r.rule ? 'null', false))
        OR f.key <> ALL (known)
        OR r.rule ? 'excludes' AND f.value <> 'null' AND o.fields -> (r.rule ->> 'excludes') <> 'null'
     ORDER BY o.place LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    words := CASE
        WHEN jsonb_typeof(objects -> wrong.place::integer - 1) <> 'object' THEN what || ' must be a JSON object'
        WHEN wrong.field <> ALL (known) THEN
            format('unknown field ''%2$s'' in %1$s: the known fields are %3$s', what, left(wrong.field, 64), array_to_string(known, ', '))
        WHEN wrong.rule ->> 'is' = 'payload' THEN jobqueue_internal.payload_fault(wrong.value)
        WHEN jobqueue_internal.fits(wrong.value, wrong.rule) THEN
            format('%s and %s exclude each other: give only one of them', wrong.rule ->> 'excludes', wrong.field)
        ELSE format('%s must be %s', wrong.field, wrong.rule ->> 'words') END;
    IF jsonb_array_length(objects) > 1 THEN
        RAISE check_violation USING MESSAGE = words, COLUMN = left(wrong.field, 64), DETAIL = 'index ' || wrong.place - 1 || ' of the batch';
    END IF;
    RAISE check_violation USING MESSAGE = words, COLUMN = left(wrong.field, 64);
END $$;
