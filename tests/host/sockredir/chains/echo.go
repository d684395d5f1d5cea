// SPDX-License-Identifier: MIT OR Apache-2.0

// usage: echo. A server that sends back what it gets by io.Copy, and a client of it.
package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"time"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go func() {
				io.Copy(connection, connection)
				connection.Close()
			}()
		}
	}()
	for number := 0; number < 20; number++ {
		data := make([]byte, 1+rand.Intn(3000000))
		rand.Read(data)
		connection, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			log.Fatal(err)
		}
		connection.SetDeadline(time.Now().Add(30 * time.Second))
		go func() {
			connection.Write(data)
			connection.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(connection)
		if err != nil || !bytes.Equal(got, data) {
			log.Fatalf("%d bytes of %d: %v", len(got), len(data), err)
		}
		connection.Close()
	}
	fmt.Println("ok 20")
}
