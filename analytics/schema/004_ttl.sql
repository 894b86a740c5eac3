-- since 20.3
-- Two years behind the day on which they were written. Older servers keep everything: ALTER TABLE ... DROP PARTITION by month.
ALTER TABLE panes MODIFY TTL day + INTERVAL 2 YEAR;
ALTER TABLE rollups MODIFY TTL day + INTERVAL 2 YEAR;
