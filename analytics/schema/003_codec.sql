-- since 20.3
-- Seconds and buckets rise: as differences they take less room.
ALTER TABLE panes MODIFY COLUMN second Int64 CODEC(Delta, LZ4);
ALTER TABLE rollups MODIFY COLUMN slot Int64 CODEC(Delta, LZ4);
