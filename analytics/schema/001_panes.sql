-- Panes: what apply() writes, added up by whoever reads. One insert is one block of one partition, so it is there whole or
-- not at all. Rows of kind '' hold no counts: each says that a source range was taken, also when no pane came of it.
CREATE TABLE IF NOT EXISTS panes (
    day Date DEFAULT today(),            -- when it was written; old months are dropped by it
    run String,
    kind String,                         -- stress, production, canary; '' = a source range
    route String,
    second Int64,                        -- unix second
    step Int32,                          -- from 0; -1 = none
    class UInt8,                         -- status / 100; 0 = no answer
    source_topic String,
    source_partition String,
    source_first UInt64,
    source_end UInt64,
    offered UInt64,
    completed UInt64,
    errors UInt64,
    shed UInt64,
    unknown UInt64,
    differing UInt64,
    bytes_out UInt64,
    bytes_in UInt64,
    due_zero UInt64,                     -- latencies in ns from when it was due: zeros, sum, maximum, counts by bucket
    due_total UInt64,
    due_max UInt64,
    dueMap Nested (bucket Int16, count UInt64),
    send_zero UInt64,                    -- the same from when it was sent
    send_total UInt64,
    send_max UInt64,
    sendMap Nested (bucket Int16, count UInt64)
) ENGINE = MergeTree PARTITION BY toYYYYMM(day)
ORDER BY (run, kind, route, second, step, class, source_topic, source_partition, source_first);

-- Small facts of a run; the highest revision counts.
CREATE TABLE IF NOT EXISTS notes (
    run String,
    name String,
    value String,
    revision UInt64
) ENGINE = ReplacingMergeTree(revision) ORDER BY (run, name);

CREATE VIEW IF NOT EXISTS runs AS
SELECT run,
       toInt64OrZero(argMaxIf(value, revision, name = 'start_s')) AS start_s,
       toInt64OrZero(argMaxIf(value, revision, name = 'watermark_s')) AS watermark_s
FROM notes GROUP BY run;
