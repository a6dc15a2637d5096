// peer_grpc: the Go SDK over gRPC (nacos-sdk-go/v2) doing what client.lua does.
//
//	peer_grpc watch ADDRESS GROUP KEYS
package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/nacos-group/nacos-sdk-go/v2/clients"
	"github.com/nacos-group/nacos-sdk-go/v2/common/constant"
	"github.com/nacos-group/nacos-sdk-go/v2/vo"
	"golang.org/x/sys/unix"
)

// The clock that the others tell, too.
func now() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

func main() {
	host, text, err := net.SplitHostPort(os.Args[2])
	if err != nil {
		panic(err)
	}
	port, _ := strconv.ParseUint(text, 10, 64)
	group := os.Args[3]
	keys, _ := strconv.Atoi(os.Args[4])
	client, err := clients.NewConfigClient(vo.NacosClientParam{
		ClientConfig: constant.NewClientConfig(constant.WithTimeoutMs(5000), constant.WithNotLoadCacheAtStart(true),
			constant.WithLogDir("log"), constant.WithCacheDir("cache"), constant.WithLogLevel("error")),
		ServerConfigs: []constant.ServerConfig{*constant.NewServerConfig(host, port)},
	})
	if err != nil {
		panic(err)
	}
	var lock sync.Mutex
	known := map[string]bool{}
	changed := func(_, _, id, content string) {
		seen := now()
		lock.Lock()
		defer lock.Unlock()
		if known[id] {
			parts := strings.SplitN(content, ".", 3)
			fmt.Printf("change %s %s %d\n", parts[1], parts[0], seen)
			return
		}
		known[id] = true
		if len(known) == keys {
			fmt.Printf("ready %d\n", seen)
		}
	}
	for i := 0; i < keys; i++ {
		if err := client.ListenConfig(vo.ConfigParam{DataId: fmt.Sprintf("cfg-%d", i), Group: group, OnChange: changed}); err != nil {
			panic(err)
		}
	}
	select {}
}
