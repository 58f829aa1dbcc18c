// Kafka Streams: the same work in one thread, with Jackson into a typed value.
//
// One stream thread, a cache of 10 MB, RocksDB with its defaults, batches and linger as the others
// have them. Its rates include the warming up of the JVM; "warm" is the rate of the second half.

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.state.KeyValueStore;

public final class Bench {
    public record Flight(
            String carrier, int flight, String tail, String origin, String dest, int distance,
            Integer dep_delay, Integer arr_delay, String departure) {}

    private static final ObjectMapper JSON = new ObjectMapper();

    private final String workload;
    private final Map<String, String> options = new HashMap<>();
    private final long records;
    private final AtomicLong seen = new AtomicLong();
    private final CountDownLatch done = new CountDownLatch(1);
    private final CountDownLatch first = new CountDownLatch(1);
    private long distance;
    private long beganAt;
    private long beganCpu;
    private long halfAt;
    private volatile long endedAt;

    private Bench(String[] arguments) {
        workload = arguments[0];
        for (int at = 1; at < arguments.length; at += 2) {
            options.put(arguments[at].substring(2), arguments[at + 1]);
        }
        records = Long.parseLong(options.get("records"));
    }

    private static Serde<Flight> flights() {
        ObjectReader reader = JSON.readerFor(Flight.class);
        ObjectWriter writer = JSON.writerFor(Flight.class);
        Serializer<Flight> serializer = (topic, flight) -> {
            try {
                return writer.writeValueAsBytes(flight);
            } catch (IOException error) {
                throw new IllegalStateException(error);
            }
        };
        Deserializer<Flight> deserializer = (topic, data) -> {
            try {
                return reader.readValue(data);
            } catch (IOException error) {
                throw new IllegalStateException(error);
            }
        };
        return Serdes.serdeFrom(serializer, deserializer);
    }

    private Properties properties() {
        boolean latency = workload.equals("latency");
        long interval = (long) (Double.parseDouble(options.get("commit-interval")) * 1000);
        Properties given = new Properties();
        given.put(StreamsConfig.APPLICATION_ID_CONFIG, options.get("group"));
        given.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, options.get("bootstrap"));
        given.put(StreamsConfig.STATE_DIR_CONFIG, options.get("data-dir"));
        given.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
        given.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, interval);
        given.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 10L << 20);
        given.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        given.put(
                StreamsConfig.PROCESSING_GUARANTEE_CONFIG,
                options.get("guarantee").equals("exactly_once")
                        ? StreamsConfig.EXACTLY_ONCE_V2
                        : StreamsConfig.AT_LEAST_ONCE);
        given.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        given.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), latency ? 0 : 20);
        given.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 1_000_000);
        return given;
    }

    private static long cpu() {
        var bean = (com.sun.management.OperatingSystemMXBean)
                ManagementFactory.getOperatingSystemMXBean();
        return bean.getProcessCpuTime();
    }

    private static double peakMb() {
        try {
            for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
                if (line.startsWith("VmHWM:")) {
                    return Long.parseLong(line.replaceAll("[^0-9]", "")) / 1024.0;
                }
            }
        } catch (IOException error) {
            throw new IllegalStateException(error);
        }
        return 0;
    }

    private void note() {
        long number = seen.incrementAndGet();
        if (number == 1) {
            beganAt = System.nanoTime();
            beganCpu = cpu();
            first.countDown();
        }
        if (number == records / 2) {
            halfAt = System.nanoTime();
        }
        if (number == records) {
            endedAt = System.nanoTime();
            done.countDown();
        }
    }

    private void report(long count, long nanoseconds, long cpuNanoseconds, double warm) {
        double seconds = nanoseconds / 1e9;
        System.out.printf(
                java.util.Locale.ROOT,
                "{\"records\": %d, \"seconds\": %f, \"per_second\": %f, \"cpu_us\": %f,"
                        + " \"peak_mb\": %f, \"warm_per_second\": %f}%n",
                count, seconds, count / seconds, cpuNanoseconds / 1e3 / count, peakMb(), warm);
    }

    private void build(StreamsBuilder builder) {
        KStream<String, Flight> source =
                builder.stream(options.get("topic"), Consumed.with(Serdes.String(), flights()));
        switch (workload) {
            case "stateless", "startup" -> source.foreach((key, flight) -> {
                distance += flight.distance();
                note();
            });
            case "pipe", "latency" -> source
                    .peek((key, flight) -> note())
                    .selectKey((key, flight) -> flight.tail())
                    .to(options.get("out"), Produced.with(Serdes.String(), flights()));
            default -> source
                    .peek((key, flight) -> note())
                    .groupByKey(Grouped.with(Serdes.String(), flights()))
                    .count(Materialized.<String, Long, KeyValueStore<Bytes, byte[]>>as("counts")
                            .withKeySerde(Serdes.String())
                            .withValueSerde(Serdes.Long()));
        }
    }

    /** Wait until the group's committed offsets stand behind the last record: all is durable. */
    private void waitUntilCommitted() throws Exception {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", options.get("bootstrap"));
        try (Admin admin = Admin.create(settings)) {
            while (true) {
                Map<TopicPartition, OffsetAndMetadata> offsets =
                        admin.listConsumerGroupOffsets(options.get("group"))
                                .partitionsToOffsetAndMetadata().get();
                long committed = offsets.values().stream().mapToLong(OffsetAndMetadata::offset).sum();
                if (committed >= records) {
                    return;
                }
                Thread.sleep(5);
            }
        }
    }

    private static final class Restored implements StateRestoreListener {
        private long total;
        private long beganAt = Long.MAX_VALUE;
        private long endedAt;

        @Override
        public synchronized void onRestoreStart(
                TopicPartition partition, String store, long start, long end) {
            beganAt = Math.min(beganAt, System.nanoTime());
        }

        @Override
        public void onBatchRestored(TopicPartition partition, String store, long end, long count) {}

        @Override
        public synchronized void onRestoreEnd(TopicPartition partition, String store, long count) {
            total += count;
            endedAt = System.nanoTime();
        }
    }

    private void run() throws Exception {
        StreamsBuilder builder = new StreamsBuilder();
        build(builder);
        KafkaStreams streams = new KafkaStreams(builder.build(), properties());
        Restored restored = new Restored();
        streams.setGlobalStateRestoreListener(restored);
        CountDownLatch running = new CountDownLatch(1);
        streams.setStateListener((now, before) -> {
            if (now == KafkaStreams.State.RUNNING) {
                running.countDown();
            }
        });
        long startedCpu = cpu();
        streams.start();
        switch (workload) {
            case "startup" -> {
                first.await();
                System.out.println("{\"first\": true}");
            }
            case "latency" -> {
                Runtime.getRuntime().addShutdownHook(new Thread(() -> close(streams)));
                new CountDownLatch(1).await();
            }
            case "recovery" -> {
                running.await();
                long keys = streams.store(org.apache.kafka.streams.StoreQueryParameters
                        .fromNameAndType("counts", org.apache.kafka.streams.state
                                .QueryableStoreTypes.<String, Long>keyValueStore()))
                        .approximateNumEntries();
                if (restored.total < records || keys < records * 0.9) {
                    throw new IllegalStateException(restored.total + " records were restored");
                }
                report(records, restored.endedAt - restored.beganAt, cpu() - startedCpu, 0);
            }
            default -> {
                done.await();
                double warm = (records - records / 2) * 1e9 / (endedAt - halfAt);
                if (options.get("guarantee").equals("exactly_once")) {
                    waitUntilCommitted();
                } else if (!workload.equals("stateless")) {
                    close(streams); // flushes and commits, sooner than the interval does
                }
                long ended = workload.equals("stateless") ? endedAt : System.nanoTime();
                report(records, ended - beganAt, cpu() - beganCpu, warm);
            }
        }
        close(streams);
    }

    private static void close(KafkaStreams streams) {
        streams.close(new KafkaStreams.CloseOptions()
                .leaveGroup(true).timeout(Duration.ofSeconds(20)));
    }

    public static void main(String[] arguments) throws Exception {
        new Bench(arguments).run();
    }
}
