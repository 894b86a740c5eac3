-- One view a series: counts, rates and percentiles of each window of each run, late outcomes included. $name: every $every s,
-- over $over s. Slots come from the roll-ups, and from panes that are not in them yet; windows begin at the run's start. A percentile
-- is the nearest rank on the sketch's buckets, told as wire/sketch.py tells a bucket, and NULL below 10 / (1 - p) samples.
CREATE VIEW $name AS
SELECT run, kind, scope AS route, toDateTime(start) AS at, start, elapsed_s, top_step AS step, toUInt32($over) AS over_s,
       start + $over <= watermark_s AS final,
       n_offered AS offered, n_completed AS completed, n_failed AS failed, n_errors AS errors, n_shed AS shed,
       n_unknown AS unknown, n_differing AS differing, n_bytes_out AS bytes_out, n_bytes_in AS bytes_in,
       n_offered / $over AS offered_rate, n_completed / $over AS completed_rate,
       if(n_completed + n_failed = 0, NULL, n_errors / (n_completed + n_failed)) AS error_share,
$percentiles,
       if(due_n = 0, NULL, top_due / 1e6) AS max_ms
FROM (
    SELECT *, due_zero_n + arraySum(due.2) AS due_n, arrayCumSum(due.2) AS due_seen, due.1 AS due_buckets,
           send_zero_n + arraySum(send.2) AS send_n, arrayCumSum(send.2) AS send_seen, send.1 AS send_buckets
    FROM (
        SELECT run, kind, $route AS scope, start_s + (slot - part) * $every AS start, (slot - part) * $every AS elapsed_s,
               watermark_s, max(step) AS top_step,
               sum(offered) AS n_offered, sum(completed) AS n_completed, sumIf(errors, class = 0) AS n_failed,
               sum(errors) AS n_errors, sum(shed) AS n_shed, sum(unknown) AS n_unknown, sum(differing) AS n_differing,
               sum(bytes_out) AS n_bytes_out, sum(bytes_in) AS n_bytes_in,
               sum(due_zero) AS due_zero_n, max(due_max) AS top_due, sumMap(due_b, due_c) AS due,
               sum(send_zero) AS send_zero_n, max(send_max) AS top_send, sumMap(send_b, send_c) AS send
        FROM (
            SELECT *, toInt64(floor((second - start_s) / $every)) AS slot
            FROM (
                SELECT run, kind, route, slot AS second, step, class, offered, completed, errors, shed, unknown, differing,
                       bytes_out, bytes_in, due_zero, finalizeAggregation(due_max) AS due_max, dueMap.bucket AS due_b,
                       dueMap.count AS due_c, send_zero, finalizeAggregation(send_max) AS send_max,
                       sendMap.bucket AS send_b, sendMap.count AS send_c
                FROM rollups WHERE span = $span
                UNION ALL
                SELECT run, kind, route, second, step, class, offered, completed, errors, shed, unknown, differing,
                       bytes_out, bytes_in, due_zero, due_max, due_b, due_c, send_zero, send_max, send_b, send_c
                FROM (
                    SELECT run, kind, route, second, step, class, source_topic, source_partition, source_first, offered,
                           completed, errors, shed, unknown, differing, bytes_out, bytes_in, due_zero, due_max,
                           dueMap.bucket AS due_b, dueMap.count AS due_c, send_zero, send_max,
                           sendMap.bucket AS send_b, sendMap.count AS send_c
                    FROM panes WHERE kind != ''
                ) AS pane ANY LEFT JOIN (
                    SELECT run, source_topic, source_partition, min(source_first) AS low, max(source_end) AS high
                    FROM rollups WHERE span = 0 GROUP BY run, source_topic, source_partition
                ) AS region USING (run, source_topic, source_partition)
                WHERE source_first < low OR source_first >= high
            ) AS sums ANY LEFT JOIN (
                SELECT run, start_s, watermark_s$first_second FROM $runs
            ) AS begun USING (run)
        ) ARRAY JOIN range($parts) AS part$first_only
        GROUP BY run, kind, scope, start, elapsed_s, watermark_s
    )
)
