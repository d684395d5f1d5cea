// SPDX-License-Identifier: MIT OR Apache-2.0

import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.Arrays;
import java.util.Random;

/**
 * usage: Echo nio|blocking server PORT, or Echo nio|blocking client PORT SEED TRANSFERS MOST
 *
 * Sockets that block, or channels with a selector. The server sends back what it gets until the end. The client sends and reads at
 * once, and compares.
 */
public class Echo {
    static volatile long began = System.nanoTime();

    public static void main(String[] args) throws Exception {
        boolean nio = args[0].equals("nio");
        int port = Integer.parseInt(args[2]);
        if (args[1].equals("server")) {
            if (nio) serveChannels(port); else serveSockets(port);
            return;
        }
        Random random = new Random(Long.parseLong(args[3]));
        int transfers = Integer.parseInt(args[4]);
        double most = Double.parseDouble(args[5]);
        Thread watch = new Thread(Echo::watch);
        watch.setDaemon(true);
        watch.start();
        for (int number = 0; number < transfers; number++) {
            began = System.nanoTime();
            double size = number == 0 ? 1024 : number == 1 ? most : 1024 * Math.pow(most / 1024, random.nextDouble());
            byte[] data = new byte[(int) size];
            random.nextBytes(data);
            byte[] got = nio ? askChannel(port, data, random) : askSocket(port, data, random);
            int wrong = Arrays.mismatch(data, got);
            if (wrong >= 0) throw new IOException(got.length + " bytes of " + data.length + ", wrong from " + wrong + " on");
        }
        System.out.println("ok " + transfers);
    }

    /** No transfer takes more than 30 seconds. */
    static void watch() {
        while (System.nanoTime() - began < 30_000_000_000L) {
            try { Thread.sleep(100); } catch (InterruptedException e) { return; }
        }
        System.err.println("no answer in 30 s");
        Runtime.getRuntime().halt(1);
    }

    static int chunk(Random random) { return (int) Math.pow(300_000, random.nextDouble()); }

    static void serveSockets(int port) throws IOException {
        try (ServerSocket listener = new ServerSocket()) {
            listener.bind(new InetSocketAddress("127.0.0.1", port));
            while (true) {
                Socket socket = listener.accept();
                new Thread(() -> {
                    try (socket) {
                        InputStream in = socket.getInputStream();
                        OutputStream out = socket.getOutputStream();
                        byte[] buffer = new byte[100_000];
                        for (int many; (many = in.read(buffer)) >= 0; ) out.write(buffer, 0, many);
                    } catch (IOException e) {
                        System.err.println(e);
                    }
                }).start();
            }
        }
    }

    static byte[] askSocket(int port, byte[] data, Random random) throws Exception {
        long seed = random.nextLong();
        try (Socket socket = new Socket("127.0.0.1", port)) {
            Thread sending = new Thread(() -> {
                Random chunks = new Random(seed);
                try {
                    OutputStream out = socket.getOutputStream();
                    for (int at = 0; at < data.length; ) {
                        int many = Math.min(chunk(chunks), data.length - at);
                        out.write(data, at, many);
                        at += many;
                    }
                    socket.shutdownOutput();
                } catch (IOException e) {
                    System.err.println(e);
                }
            });
            sending.start();
            byte[] got = socket.getInputStream().readAllBytes();
            sending.join();
            return got;
        }
    }

    static void serveChannels(int port) throws IOException {
        Selector selector = Selector.open();
        ServerSocketChannel listener = ServerSocketChannel.open();
        listener.bind(new InetSocketAddress("127.0.0.1", port));
        listener.configureBlocking(false);
        listener.register(selector, SelectionKey.OP_ACCEPT);
        while (true) {
            selector.select();
            for (SelectionKey key : selector.selectedKeys()) {
                if (key.isAcceptable()) {
                    SocketChannel channel = listener.accept();
                    channel.configureBlocking(false);
                    channel.register(selector, SelectionKey.OP_READ, ByteBuffer.allocateDirect(200_000));
                    continue;
                }
                SocketChannel channel = (SocketChannel) key.channel();
                ByteBuffer buffer = (ByteBuffer) key.attachment();
                try {
                    if (key.isReadable() && channel.read(buffer) < 0) {
                        buffer.flip();
                        // A channel that has a key can't block.
                        key.cancel();
                        channel.configureBlocking(true);
                        while (buffer.hasRemaining()) channel.write(buffer);
                        channel.close();
                        continue;
                    }
                    buffer.flip();
                    channel.write(buffer);
                    buffer.compact();
                    int wanted = buffer.hasRemaining() ? SelectionKey.OP_READ : 0;
                    key.interestOps(buffer.position() > 0 ? wanted | SelectionKey.OP_WRITE : wanted);
                } catch (IOException e) {
                    System.err.println(e);
                    channel.close();
                }
            }
            selector.selectedKeys().clear();
        }
    }

    static byte[] askChannel(int port, byte[] data, Random random) throws IOException {
        try (Selector selector = Selector.open(); SocketChannel channel = SocketChannel.open()) {
            channel.connect(new InetSocketAddress("127.0.0.1", port));
            channel.configureBlocking(false);
            SelectionKey key = channel.register(selector, SelectionKey.OP_READ | SelectionKey.OP_WRITE);
            ByteBuffer out = ByteBuffer.wrap(data);
            // A byte more than is owed, so that what is too much is seen.
            ByteBuffer in = ByteBuffer.allocate(data.length + 1);
            while (true) {
                selector.select();
                selector.selectedKeys().clear();
                if (key.isReadable() && channel.read(in) < 0) return Arrays.copyOf(in.array(), in.position());
                if (key.isWritable() && out.hasRemaining()) {
                    out.limit(Math.min(out.position() + chunk(random), data.length));
                    channel.write(out);
                    out.limit(data.length);
                    if (!out.hasRemaining()) {
                        channel.shutdownOutput();
                        key.interestOps(SelectionKey.OP_READ);
                    }
                }
            }
        }
    }
}
