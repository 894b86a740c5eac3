-- since 22.2
-- The server itself leaves out an insert that it was sent twice: each bears a token of its writer and source ranges.
ALTER TABLE panes MODIFY SETTING non_replicated_deduplication_window = 1000;
