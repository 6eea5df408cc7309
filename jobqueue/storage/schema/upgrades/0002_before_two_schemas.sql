-- Version 2: the tables and the functions that users should not call move to the schema jobqueue_internal.
--
-- Version 1 had one schema. This step renames it to jobqueue_internal and creates a new schema jobqueue. Renaming locks
-- no table, so no statement waits for it. Nodes of version 1 keep working. For each of their tables, the new schema has
-- a view that they can write to. For each function that is internal now, it has a function that calls the internal one.
-- 0002_after_two_schemas.sql drops both.
--
-- A function call of version 1 that is running at the commit can fail, because its next statement finds a view instead
-- of a table. The node calls it again.
--
-- Lock: ACCESS EXCLUSIVE on jobqueue_internal.schema_version, about 150 ms: starts of nodes
DO $upgrade$
DECLARE
    differing text;
    ours oid[];
    was record;
BEGIN
    IF to_regclass('jobqueue_internal.schema_version') IS NOT NULL OR to_regclass('jobqueue.schema_version') IS NULL THEN
        RETURN;   -- the database is new, or has version 2 already
    END IF;

    -- Compare the database with version 1: each object that it must have, and a digest of its definition.
    WITH tables AS (
        SELECT c.oid, c.relname, c.relkind FROM pg_class AS c
         WHERE c.relnamespace = 'jobqueue'::regnamespace AND c.relkind IN ('r', 'p', 'v')
           AND c.relname !~ '^(succeeded|cancelled)_jobs_[0-9]'
    ), found (kind, name, digest, oid) AS (
        SELECT 'function', p.proname || '(' || oidvectortypes(p.proargtypes) || ')', md5(p.prosrc), p.oid
          FROM pg_proc AS p WHERE p.pronamespace = 'jobqueue'::regnamespace
        UNION ALL
        SELECT CASE t.relkind WHEN 'v' THEN 'view' ELSE 'table' END, t.relname,
               md5(concat_ws(',', pg_get_partkeydef(t.oid),
                             string_agg(concat_ws('|', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated,
                                                  a.atthasdef), ',' ORDER BY a.attname))), t.oid
          FROM tables AS t JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
         GROUP BY t.oid, t.relname, t.relkind
        UNION ALL
        SELECT 'constraint', n.conname || ' on ' || t.relname, md5(pg_get_constraintdef(n.oid)), n.oid
          FROM tables AS t JOIN pg_constraint AS n ON n.conrelid = t.oid
        UNION ALL
        SELECT 'index', i.relname, md5(pg_get_indexdef(x.indexrelid)), i.oid
          FROM tables AS t JOIN pg_index AS x ON x.indrelid = t.oid JOIN pg_class AS i ON i.oid = x.indexrelid
         WHERE x.indisvalid
        UNION ALL
        SELECT 'trigger', g.tgname || ' on ' || t.relname, md5(pg_get_triggerdef(g.oid)), g.oid
          FROM tables AS t JOIN pg_trigger AS g ON g.tgrelid = t.oid
    ), version_1 (kind, name, digest) AS (VALUES
        ('constraint', 'aging_interval_range on queues', '0db27b15db4b371e0ae07c78e7e49c67'),
        ('constraint', 'blocked_jobs_pkey on blocked_jobs', '4c6419b3704337bbfe50f018842a9ad3'),
        ('constraint', 'burst_range on queues', '16a4c69894228331522fa7c4e27545eb'),
        ('constraint', 'concurrency_key_length on blocked_jobs', 'f38af2f2da0ad3cdb4ac8e46082b34ca'),
        ('constraint', 'concurrency_key_length on scheduled_jobs', 'f38af2f2da0ad3cdb4ac8e46082b34ca'),
        ('constraint', 'cron_length on schedules', 'd99b8cdd101cb9c1f0c0427b846f3a13'),
        ('constraint', 'dead_jobs_pkey on dead_jobs', '4c6419b3704337bbfe50f018842a9ad3'),
        ('constraint', 'fair_groups_pkey on fair_groups', '95c82422d1d4a46a8af1effbb99fc4fd'),
        ('constraint', 'fair_queues_pkey on fair_queues', '001f6d8a24aac731377d84caeda1b1af'),
        ('constraint', 'history_pkey on history', '9efc4a40462739573c16a93bb961e381'),
        ('constraint', 'inflight_jobs_pkey on inflight_jobs', '4c6419b3704337bbfe50f018842a9ad3'),
        ('constraint', 'key_buckets_pkey on key_buckets', '362c34a4b5f43bdbb3f55d9179c0c99a'),
        ('constraint', 'key_burst_range on queues', 'ab44a1ab8e3f87d7f0db30fb809bb6a2'), ('constraint', 'key_length on keys', 'c60a0a356c21472590fe49f3f34366a0'),
        ('constraint', 'key_max_running_range on queues', '380ec9f574f76f9ab970150b89fc470f'),
        ('constraint', 'key_rate_range on queues', 'da7db54a2c66f6c73caab46ffb41be55'), ('constraint', 'keys_pkey on keys', 'd64a5930eb2f8649fc140076c3d09658'),
        ('constraint', 'keys_scope_check on keys', 'e0f3839929800a147bf1da04677ac59e'),
        ('constraint', 'kind_length on blocked_jobs', 'b98faa5a13c7650a2b95c9f5ed7ff42d'),
        ('constraint', 'kind_length on pending_jobs', 'b98faa5a13c7650a2b95c9f5ed7ff42d'),
        ('constraint', 'kind_length on scheduled_jobs', 'b98faa5a13c7650a2b95c9f5ed7ff42d'),
        ('constraint', 'kind_length on schedules', 'b98faa5a13c7650a2b95c9f5ed7ff42d'),
        ('constraint', 'max_retries_range on blocked_jobs', 'b3f3720eeefd9c0c0180e8862625e204'),
        ('constraint', 'max_retries_range on pending_jobs', 'b3f3720eeefd9c0c0180e8862625e204'),
        ('constraint', 'max_retries_range on scheduled_jobs', 'b3f3720eeefd9c0c0180e8862625e204'),
        ('constraint', 'max_retries_range on schedules', 'b3f3720eeefd9c0c0180e8862625e204'),
        ('constraint', 'max_running_range on queues', '42324de6406296f20f3c0c7fafd3ee19'),
        ('constraint', 'missed_known on schedules', '7a679762fbf8c99bdeed4ea2d4455364'),
        ('constraint', 'name_length on schedules', 'dccf3f0046d2e101ab803972b4b19cd9'),
        ('constraint', 'next_at_finite on schedules', '5567607e16c9737f680595adc34a02d9'), ('constraint', 'nodes_pkey on nodes', '4c6419b3704337bbfe50f018842a9ad3'),
        ('constraint', 'pending_jobs_pkey on pending_jobs', '4c6419b3704337bbfe50f018842a9ad3'),
        ('constraint', 'priority_range on blocked_jobs', 'e8b88455caddfadeea49ab5a7f449439'),
        ('constraint', 'priority_range on pending_jobs', 'e8b88455caddfadeea49ab5a7f449439'),
        ('constraint', 'priority_range on scheduled_jobs', 'e8b88455caddfadeea49ab5a7f449439'),
        ('constraint', 'priority_range on schedules', 'e8b88455caddfadeea49ab5a7f449439'),
        ('constraint', 'queue_length on blocked_jobs', 'a98a45919b836e51d57e03165f55995c'),
        ('constraint', 'queue_length on pending_jobs', 'a98a45919b836e51d57e03165f55995c'),
        ('constraint', 'queue_length on scheduled_jobs', 'a98a45919b836e51d57e03165f55995c'),
        ('constraint', 'queue_length on schedules', 'a98a45919b836e51d57e03165f55995c'),
        ('constraint', 'queue_limits_pkey on queue_limits', '001f6d8a24aac731377d84caeda1b1af'),
        ('constraint', 'queues_pkey on queues', 'c302dc585e3d60f2f29aa138474141ea'), ('constraint', 'rate_range on queues', '48961fe56905a06dedd0b9b6c9aaa942'),
        ('constraint', 'run_at_finite on scheduled_jobs', 'e29888cc05ec7847752b2019c097f512'),
        ('constraint', 'scheduled_jobs_pkey on scheduled_jobs', '4c6419b3704337bbfe50f018842a9ad3'),
        ('constraint', 'schedules_pkey on schedules', 'c302dc585e3d60f2f29aa138474141ea'),
        ('constraint', 'timeout_range on blocked_jobs', '5869190d82d607ed4a39d390326f0fcf'),
        ('constraint', 'timeout_range on pending_jobs', '5869190d82d607ed4a39d390326f0fcf'),
        ('constraint', 'timeout_range on scheduled_jobs', '5869190d82d607ed4a39d390326f0fcf'),
        ('constraint', 'timeout_range on schedules', '5869190d82d607ed4a39d390326f0fcf'),
        ('constraint', 'times_finite on blocked_jobs', '33fb28b3691956ec0f31482932fc7028'),
        ('constraint', 'times_finite on pending_jobs', '33fb28b3691956ec0f31482932fc7028'),
        ('constraint', 'timezone_length on schedules', 'c937a76fc1c0c6ddcbae88ef1b0f5091'), ('function', 'admit(integer)', '26ab3d3c8e57350a335179338b10930f'),
        ('function', 'admit_these(tid[])', '9383f212f7d576ddf6ee32469a543873'), ('function', 'allowance(text, integer)', 'b262211403606839f29755f84000593b'),
        ('function', 'best_of(jsonb)', '9d6b7fefdbda3158f7b6ca352db025b3'), ('function', 'block()', '607f154048009d4b1a2384b1158c0494'),
        ('function', 'bury(text, tid[], text, text)', '5e271965d57c2ce792ce9c9d96ac6dc4'), ('function', 'cancel(uuid, boolean)', 'aa5da8dfc47ff51d116652206b57665b'),
        ('function', 'cancel_jobs(jsonb, integer, boolean, boolean)', '0ec2083f0ca1475346d4eeddb31b72a8'),
        ('function', 'cancel_now(uuid, boolean)', '1f98bda559255f13529fd621ac96a6a2'), ('function', 'cancel_requested()', '63ca3970ad361d85defd5746ab858942'),
        ('function', 'cancel_these(uuid[], text[], boolean)', '29d4faec95d56976a6ae3424d37c5da4'),
        ('function', 'cancel_waiting(uuid, boolean)', 'b44dcc48f22ccd087447250468eb8779'),
        ('function', 'cancel_walk(jsonb, integer, uuid, boolean, boolean)', '7930e538423e9811db5bfc20e3aa62e2'),
        ('function', 'cause_of(jsonb, text)', '3a1f4733ec420e546123d9c197ee97a3'),
        ('function', 'change(uuid, integer, timestamp with time zone)', '28179d3f2df575cccd52f3ff4b446aa7'),
        ('function', 'check_keys(text, integer)', '619fb825a5317aa73fdbcbd63e170efe'), ('function', 'claim(uuid, jsonb, jsonb)', '72735473e6ae7c879de1e7c3968a97f2'),
        ('function', 'clock_was_set_back()', '059a72e7c4afd54084aca43da40fb048'), ('function', 'conditions(jsonb, text[])', 'e118e583789773aba4859d57179ab816'),
        ('function', 'configure(text, interval, integer, double precision, integer, integer, double precision, integer, text[])', '6703428be9e04c4d654714377369404d'),
        ('function', 'dead_causes(jsonb, integer)', '46c5a6e9f9c0a523e36bc3c2b9a6caac'), ('function', 'dead_condition(jsonb)', '66b648186879729cb97485b4b20a7c5a'),
        ('function', 'dead_matching(jsonb, integer, text)', '0dd1665aa1e7d7bfee7d0321d2a1fbed'), ('function', 'depth()', '05e97798d178262116c71f85f5c04f74'),
        ('function', 'discard(uuid)', '11427155d7c8c98af8b0f7d232c41251'), ('function', 'discard_dead(jsonb, integer, boolean)', 'fd46afb12df352ae7720f45b479ad07b'),
        ('function', 'due_schedules(integer)', '5635307f93306cdacabd6f1032fc6974'), ('function', 'expire(integer)', '2d3d6bc8fe7c7b3ecf0286e5bf799845'),
        ('function', 'fingerprint(jsonb)', '875bf25ce0e369c776d1d2568a431d95'), ('function', 'finish(uuid, jsonb, boolean)', '12d1df28a179ccafc45e1e47e9b204ac'),
        ('function', 'fits(jsonb, jsonb)', '0608f2b593ac6c220f02d58f4ca9d2de'), ('function', 'freed(text)', '5057385037656d02e73272576ad801d3'),
        ('function', 'heartbeat(uuid, double precision, jsonb)', '608bb55298fd62c6a9a14267928264e4'),
        ('function', 'hold_unique_key(text, uuid)', '39bfe5baf95178672014c6c5081b0ddd'), ('function', 'ids_like(text)', '31f215f6b3ba79ff7c44e142413f0173'),
        ('function', 'instant(text)', 'ee241e68657b7b97acb0fae33a12e7e5'),
        ('function', 'job_of(jobqueue.schedules, timestamp with time zone)', '0055b3a14920530ecaa61fe072c158e8'),
        ('function', 'join_node(uuid, text, integer, text, text, jsonb, double precision)', '912d6505cb6d58feefdf4e719e5958ce'),
        ('function', 'key_allowance(text, text, double precision, double precision, bigint)', '7909c327df178843affd52018e0effe1'),
        ('function', 'keys_of(jsonb)', 'a2301aed5f5e8f8ba58b8e9e057d54a4'), ('function', 'lags(text, timestamp with time zone)', '38b3297ec31c1ff67f9f2b0b0831643a'),
        ('function', 'leave_node(uuid)', '947251b951125b77f6ae9eb11d939207'), ('function', 'leave_these(tid[])', '6d906dccdd821d477f0a2e042b7982e0'),
        ('function', 'list_dead(jsonb, integer, timestamp with time zone, uuid)', '0d489d958c631eb31e0a14cb30e385d4'),
        ('function', 'list_jobs(jsonb, integer, uuid, integer)', '6b9c25e2b5eb79e27b35327ead79116d'),
        ('function', 'lose_node(uuid)', 'd9e99a43bcfd1ac5ce9b6d10a96319e5'),
        ('function', 'maintain(double precision, double precision)', '448790c5ac47615e57a4f413ac1c7c0f'),
        ('function', 'merged(integer[], integer[])', '109de75edb3a9894d69d236ab02512e8'),
        ('function', 'move(text, text, text, tid[])', '7b75329a511110d004627ab66876866a'), ('function', 'move_schedules(jsonb)', 'b47752121db64c0ac9e55b7ec4da7803'),
        ('function', 'next_check()', 'a90327caefc3f2a6e2481690dceb60e5'), ('function', 'next_expiry()', '8dccba4243dfc645f5f9e89a838af5e2'),
        ('function', 'note(uuid, jsonb)', 'a6b3d144c7ccb4a33c021a3a714452af'), ('function', 'partitions(text)', 'b96e4f445f4d7b6614cc7ce9df7f08c7'),
        ('function', 'pause(text, boolean)', '872d1563d3b7a8f85fd48f1a5f8ec6ad'), ('function', 'pause_schedule(text, boolean)', '9b90e97d5b6524071e5f686621a54498'),
        ('function', 'payload_fault(jsonb)', 'df6b9dbd7bb6db4b6e31edd1a454e3a8'),
        ('function', 'prepare(jsonb, boolean, double precision, timestamp with time zone)', '225f3a0bee92e4742f11bd343bc1a106'),
        ('function', 'promote(integer)', '354700c669cd94f040b68dfca5966c78'), ('function', 'promote_these(tid[])', '11478068e18bbcb70183ea1929bc7a41'),
        ('function', 'prune(double precision, double precision, double precision, integer)', '0ad6cc28dc889284842f2bc768f227ae'),
        ('function', 'prune_keys(integer)', 'aa3ab984dd03fe41690c99fdd26b7bfd'),
        ('function', 'rank_of(timestamp with time zone, integer, interval, jsonb)', '3f2730a74be65b195a6dab3c7b64f17b'),
        ('function', 'reconcile_schedules(text, jsonb)', 'b03618e773d405483cf736bd1cfa3871'),
        ('function', 'record(bigint, bigint, bigint, bigint, integer[], integer[], boolean)', '005626d33a3da361531e53965c6a8c2b'),
        ('function', 'recover(integer, uuid)', 'cc1455cffc330a6973ea1b1825e15179'), ('function', 'recover_these(tid[])', '85b006d6ca70b827079c402e0bc9f3d0'),
        ('function', 'redrive(uuid[])', '0733139dd9e7bfd635c381d500aada65'), ('function', 'redrive_these(tid[])', '313699b2bee4051c37a0f2fc205ca8e2'),
        ('function', 'refilled(double precision, timestamp with time zone, double precision, double precision)', '4f9359035549c41a52caf6505d3630ef'),
        ('function', 'refuse_expired(jsonb, timestamp with time zone, boolean)', '67b20fc4f621d07fd17dcbd62cf7c1cd'),
        ('function', 'refuse_unfit(jsonb, text, text[])', 'ea880f1d3d2b1e2c7c8114c072be8bbf'), ('function', 'retry(uuid)', '4fcce1d7cdecd4b202c2cf41fd0d9b1f'),
        ('function', 'retry_dead(jsonb, integer, boolean)', '6cdccd7aeeb158d95791b774903d18db'), ('function', 'rules()', '9128711a05a113117de500b51e51b326'),
        ('function', 'schedule(text, text, text, text, text, jsonb, text, integer, integer, double precision)', '00afe10af2f82a7b55a6aeb69c65250c'),
        ('function', 'seconds_left(jsonb)', 'a7979310e14246b68af91968ef20f20e'),
        ('function', 'serve_lines(text, numeric, numeric, boolean)', 'bf05d6b40af81145ccbf4bac773fbfe1'),
        ('function', 'settle_keys(jsonb, boolean, double precision)', '3b5035fad3fc9a731ba068e4c9d58605'),
        ('function', 'shown(jsonb)', 'ae88c84855cff43ac1128c44d6ba39b3'),
        ('function', 'slot(integer, timestamp with time zone)', '3ee25aa9722d5b6ec430e6b34e54c091'),
        ('function', 'spend(text, integer)', '8556bab57cccb1152d6cf3e81ffce308'), ('function', 'states_of(jsonb, text[])', '80e13e5ce77c7fc14a414776dd45b0c6'),
        ('function', 'submit(text, jsonb, text, integer, integer, timestamp with time zone, double precision, timestamp with time zone, text, double precision, text, text, boolean, text, text, text)', 'f8a91db9f7197ffdcfd8da7f5f5a801f'),
        ('function', 'submit_batch(jsonb, boolean, boolean, uuid, jsonb, jsonb, double precision, boolean)', 'ccee6215bc66ca47b91ce6a7a63f0105'),
        ('function', 'submit_many(jsonb)', 'e300923241294330add8053a95c78fc9'), ('function', 'surrender(uuid, jsonb)', '73b61f4b527c79e81101f5bc2f6f9ad5'),
        ('function', 'take_turns(jsonb)', 'eed3815ff7852496a032f079cad80cbd'), ('function', 'tell_of_schedules()', '91638fb53eac86945aa00e89e2032224'),
        ('function', 'timed(jsonb)', 'c9ddecba79baff2534c61292ece7b912'), ('function', 'trigger_schedule(text)', '85da9c56f8c0399f0214e50a9aae311d'),
        ('function', 'unfinished(uuid)', '89b7f2ab473b8c3581dce8ccc2713016'),
        ('function', 'unique_key_of(text, text, jsonb, jsonb)', '5f8bcfc46322e0831508a25d67df4b02'),
        ('function', 'unschedule(text)', 'b2ae6675935e0d46625f879f83e9906f'), ('function', 'uuid7()', '27992e33d3763d8d92923a8800825181'),
        ('function', 'uuid7_from(timestamp with time zone)', 'afb31f85c621fb8d2a6bd3fef89dd934'),
        ('function', 'wake(text, timestamp with time zone)', '95b245d74c3c532bdfd520652a911637'), ('function', 'wake_keys()', '561686ade15b4f30b86587b4ad41acf5'),
        ('function', 'walk(jsonb, text[], uuid, integer, integer)', 'b0a07c2d83836a0b79d94235da31f596'),
        ('function', 'with_error(jsonb, jsonb)', '7d16e20bc236f908e387c238518de9eb'),
        ('function', 'with_new_turn(jsonb, text, integer)', '01d22366c3ed8568ebc9a9983a16b1e6'),
        ('function', 'with_options(jsonb)', 'f05cfe6044ef84a1b8d0b5c4e70fb1dc'), ('index', 'blocked_jobs_expire', 'b52239327b9f728c4261024ba7b54ad6'),
        ('index', 'blocked_jobs_key', '859444ba7d153b70fc10184baa48fa16'), ('index', 'blocked_jobs_pkey', '0a9f1370294811ca9f0ff9c061fd5519'),
        ('index', 'dead_jobs_cause', 'a901c21c6d9a4d220ec4e8620da19424'), ('index', 'dead_jobs_died_at', '659a3f197798ab1e70f118555d6e2577'),
        ('index', 'dead_jobs_kind', '79e6e125d059e668926dd585a463b593'), ('index', 'dead_jobs_pkey', '794931f1b5b4cc8d46ec150a790e45bb'),
        ('index', 'dead_jobs_queue', 'f7336d1eff6fe642408cc0bb3d4a2b73'), ('index', 'fair_groups_pkey', 'f2cafe2cdc5fbff69d5d2ccd7ded4064'),
        ('index', 'fair_queues_pkey', 'c593ab93aa5272c155a4c04e52705fd6'), ('index', 'finished_jobs_id', 'f290c5ca982c9a7a2cc92786702e4e69'),
        ('index', 'history_pkey', '4303b85d386ac3c84024f4f7666669c1'), ('index', 'inflight_jobs_cancel', '52f389e1f1305d07b52b74599e64a042'),
        ('index', 'inflight_jobs_limited', '4d9750727c92b1b1edaec3849bb268c2'), ('index', 'inflight_jobs_pkey', 'e0c2af909cd82847a3015a6aec4aa984'),
        ('index', 'key_buckets_pkey', '4fd001a2d4699bba9fcbe0ebaf620d15'), ('index', 'key_checks_next', 'f50313dc356c8bcc1256e5b5e6f23850'),
        ('index', 'key_starts_key', '3fe21f843ed897aa7bd990d3912e5f07'), ('index', 'keys_expires_at', '5f80362b79a13bb0e0020e5f48cd0106'),
        ('index', 'keys_pkey', 'e519c8cddc9439ebdb49d0c176a08b93'), ('index', 'nodes_pkey', '34b28fff2637de4563153a3bccdec831'),
        ('index', 'pending_jobs_claim', '27904a0d951b340aa471957ff9b421ef'), ('index', 'pending_jobs_expire', '9d6b392b6918f3b58acef3ca178b8eb6'),
        ('index', 'pending_jobs_group', 'd910be110b47d79c2e5ccf2cb2e90a36'), ('index', 'pending_jobs_key', 'fa4bbaa12c1afc02030309e80b982f81'),
        ('index', 'pending_jobs_pkey', 'f81cbe91f25e1d364252fc46ff15b9cd'), ('index', 'pending_jobs_turn', 'cc989f95c3f2cad73603ec676bff92fa'),
        ('index', 'queue_limits_pkey', 'fdf4ed8f770227723b6292f7373663ca'), ('index', 'queues_pkey', 'f2050758f898f5f497cdbe9e62065832'),
        ('index', 'scheduled_jobs_expire', '9382b7e18a2fc897277618803b1137b5'), ('index', 'scheduled_jobs_pkey', 'c0df46ecd9891ea4e8d624f2d1b17d41'),
        ('index', 'scheduled_jobs_promote', 'ddaeeecf9fad40df0c05ba7b5d3bb824'), ('index', 'schedules_pkey', '25de20b9bee0e7c7a659876a44d3e96e'),
        ('table', 'blocked_jobs', '7b2924c8bca47b3de5ac4c0de6593199'), ('table', 'cancel_requests', 'dc9a32eb9fd3d05aeee72451b3e21403'),
        ('table', 'cancelled_jobs', 'e6801680438775921a989e2fdba6a045'), ('table', 'cancelled_jobs_default', '88a2efb5f7e2094797b00496dee4c043'),
        ('table', 'dead_jobs', '180255d8a108423c28235920f05447b3'), ('table', 'fair_groups', '6e157798bdb2698d149a35e644afed27'),
        ('table', 'fair_queues', 'f79e275cf0967636cb020e36411a71a4'), ('table', 'finished_jobs', 'cce3ec8f37dceddc8d1c6f0ef1f4fb3c'),
        ('table', 'history', '07d58b022a9b8970d9b2c54c34f34315'), ('table', 'inflight_jobs', 'd557762e2facb5fd07a16c6e68e2b65f'),
        ('table', 'key_buckets', '33927e4b31601a34f777272705aa3438'), ('table', 'key_checks', '472dd6f394716f4d2c195bbe3e4e7e8d'),
        ('table', 'key_starts', '5bd6181771094807b8a7abff01ac94d4'), ('table', 'keys', '3bb8d77500773b05f14a34ba06514bf1'),
        ('table', 'nodes', 'c10d46bf7485fb7c94ce33f7833c1ed1'), ('table', 'pending_jobs', '7b2924c8bca47b3de5ac4c0de6593199'),
        ('table', 'queue_limits', '5c4dae5970057f852db35ecad75dbedc'), ('table', 'queues', 'f45bab44da23b67fea1d26c3cb2e3966'),
        ('table', 'scheduled_jobs', '99f83f5dd649b0d1a63830a1521626b4'), ('table', 'schedules', '6fdede9ea94caff96f77f347d3f5b898'),
        ('table', 'schema_version', '6d0c76a77e31b8d6bdde8382b255ba9b'), ('table', 'sql_submissions', '863fe591d79704f1777f5a2bf1ed4062'),
        ('table', 'succeeded_jobs', 'e6801680438775921a989e2fdba6a045'), ('table', 'succeeded_jobs_default', '88a2efb5f7e2094797b00496dee4c043'),
        ('trigger', 'block on pending_jobs', 'b250e3f2d5abb28cb71fb36c0f0648d1'), ('view', 'jobs', '6af17cfb7ecf3a88c8b47ad39953f2d5')
    )
    SELECT string_agg(v.kind || ' ' || v.name || CASE WHEN f.oid IS NULL THEN ' is missing' ELSE ' differs' END, ', '
                      ORDER BY v.kind, v.name) FILTER (WHERE f.digest IS DISTINCT FROM v.digest),
           array_agg(f.oid)
      INTO differing, ours
      FROM version_1 AS v LEFT JOIN found AS f ON f.kind = v.kind AND f.name = v.name;
    IF differing IS NOT NULL THEN
        RAISE EXCEPTION 'the schema "jobqueue" is not version 1, so it cannot be upgraded: %',
            CASE WHEN length(differing) > 500 THEN left(differing, 500) || ' ...' ELSE differing END
            USING HINT = 'Apply the schema of jobqueue 0.1.0 first (`jobqueue migrate` of that release), then upgrade. '
                         'If that fails, the schema is older than 0.1.0: let the jobs end, and use a new database.';
    END IF;

    -- Let each session look up functions again before it sees the new schemas. Sessions receive this change and the
    -- renaming together, but changes that come later can arrive a moment later.
    ALTER FUNCTION jobqueue.submit COST 100;
    ALTER SCHEMA jobqueue RENAME TO jobqueue_internal;
    EXECUTE format('CREATE SCHEMA jobqueue AUTHORIZATION %I',
                   (SELECT pg_get_userbyid(c.relowner) FROM pg_class AS c WHERE c.oid = 'jobqueue_internal.schema_version'::regclass));
    -- grants.sql grants USAGE on the new schema to the roles that have it on the old one. No role keeps CREATE,
    -- because functions of the owner call the functions in jobqueue_internal.
    FOR was IN
        SELECT a.privilege_type || ' ON SCHEMA ' || n.oid::regnamespace AS what, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS role
          FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
         WHERE (n.nspname = 'jobqueue' OR n.nspname = 'jobqueue_internal' AND a.privilege_type = 'CREATE') AND a.grantee <> n.nspowner
           AND a.grantee <> (SELECT c.relowner FROM pg_class AS c WHERE c.oid = 'jobqueue_internal.schema_version'::regclass)
    LOOP
        EXECUTE format('REVOKE %s FROM %s', was.what, was.role);
    END LOOP;

    -- Objects that are not jobqueue's stay in the schema jobqueue. For example, the tables of a role named jobqueue are
    -- there by default.
    FOR was IN
        SELECT 'ALTER TABLE ' || c.oid::regclass AS statement FROM pg_class AS c
         WHERE c.relnamespace = 'jobqueue_internal'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.oid <> ALL (ours)
           AND NOT (c.relispartition AND pg_partition_root(c.oid) = ANY (ours))
        UNION ALL
        SELECT 'ALTER SEQUENCE ' || c.oid::regclass FROM pg_class AS c
         WHERE c.relnamespace = 'jobqueue_internal'::regnamespace AND c.relkind = 'S'
           AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i'))
        UNION ALL
        SELECT 'ALTER ROUTINE ' || p.oid::regprocedure FROM pg_proc AS p
         WHERE p.pronamespace = 'jobqueue_internal'::regnamespace AND p.oid <> ALL (ours)
        UNION ALL
        SELECT 'ALTER TYPE ' || t.oid::regtype FROM pg_type AS t
         WHERE t.typnamespace = 'jobqueue_internal'::regnamespace AND (t.typtype IN ('e', 'd', 'r', 'm') OR t.typrelid IN (SELECT c.oid FROM pg_class AS c WHERE c.relkind = 'c'))
    LOOP
        EXECUTE was.statement || ' SET SCHEMA jobqueue';
    END LOOP;

    -- The public functions move, so that running calls, privileges, and the objects of users that depend on them stay valid.
    FOR was IN
        SELECT p.oid::regprocedure AS name FROM pg_proc AS p
         WHERE p.oid = ANY (ours)
           AND p.proname = ANY ('{submit,submit_many,list_jobs,list_dead,dead_causes,change,cancel,cancel_jobs,retry,retry_dead,discard,discard_dead,configure,pause,schedule,unschedule,pause_schedule,trigger_schedule}')
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET SCHEMA jobqueue', was.name);
    END LOOP;

    -- From here on, run as the role that owns the tables, see prepare.sql.
    PERFORM set_config('role', pg_get_userbyid(c.relowner), true) FROM pg_class AS c
      WHERE c.oid = 'jobqueue_internal.schema_version'::regclass AND c.relowner <> current_user::regrole;

    -- The objects for nodes of version 1.
    FOR was IN
        SELECT c.relname AS name FROM pg_class AS c
         WHERE c.oid = ANY (ours) AND c.relkind IN ('r', 'p') AND c.relname NOT IN ('schema_version', 'dead_jobs', 'queues', 'schedules', 'nodes')
    LOOP
        EXECUTE format('CREATE VIEW jobqueue.%1$I AS SELECT * FROM jobqueue_internal.%1$I', was.name);
    END LOOP;
    FOR was IN
        SELECT p.proname AS name, pg_get_function_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result,
               CASE WHEN p.proretset OR p.prorettype = 'record'::regtype THEN '* FROM ' ELSE '' END AS which,
               (SELECT coalesce(string_agg('$' || n, ', ' ORDER BY n), '') FROM generate_series(1, p.pronargs) AS n) AS given
          FROM pg_proc AS p
         WHERE p.oid = ANY (ours) AND p.pronamespace = 'jobqueue_internal'::regnamespace AND p.prorettype <> 'trigger'::regtype
           AND p.proname <> 'submit_batch'
    LOOP
        EXECUTE format('CREATE FUNCTION jobqueue.%I(%s) RETURNS %s LANGUAGE sql AS %L', was.name, was.arguments, was.result,
                       format('SELECT %sjobqueue_internal.%I(%s)', was.which, was.name, was.given));
    END LOOP;

    ALTER TABLE jobqueue_internal.schema_version ADD COLUMN oldest_node integer NOT NULL DEFAULT 1;
    ALTER TABLE jobqueue_internal.schema_version ALTER COLUMN oldest_node DROP DEFAULT;
    INSERT INTO jobqueue_internal.schema_version (version, oldest_node) VALUES (2, 1);
    DROP FUNCTION jobqueue_internal.join_node(uuid, text, integer, text, text, jsonb, double precision);   -- version 2 has one more argument
END $upgrade$;
