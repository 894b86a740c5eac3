-- Panes of whole slots (5, 10, 60, 600 s from the run's start), added up further by merges. Made of panes by source range: rows of
-- kind '' say which ranges are in here already; panes outside of them are read from the table of panes.
CREATE TABLE IF NOT EXISTS rollups (
    day Date DEFAULT today(),
    run String,
    span UInt32,                         -- length of the slot in s; 0 = a source range
    kind String,
    route String,
    slot Int64,                          -- unix second in which it begins
    step Int32,
    class UInt8,
    source_topic String,
    source_partition String,
    source_first UInt64,
    source_end UInt64,
    folded UInt64,                       -- rows of panes in it: never 0, because merges drop rows that are all zeros
    offered UInt64,
    completed UInt64,
    errors UInt64,
    shed UInt64,
    unknown UInt64,
    differing UInt64,
    bytes_out UInt64,
    bytes_in UInt64,
    due_zero UInt64,
    due_total UInt64,
    due_max AggregateFunction(max, UInt64),
    dueMap Nested (bucket Int16, count UInt64),
    send_zero UInt64,
    send_total UInt64,
    send_max AggregateFunction(max, UInt64),
    sendMap Nested (bucket Int16, count UInt64)
) ENGINE = SummingMergeTree PARTITION BY toYYYYMM(day)
ORDER BY (run, span, kind, route, slot, step, class, source_topic, source_partition, source_first, source_end);
