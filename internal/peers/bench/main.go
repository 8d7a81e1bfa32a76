// Command bench measures Redlock beside redsync, on the same servers in the same run; or redislock on one server,
// beside other lock libraries and the plainest thing that could be called a lock. Machines are noisy and differ; who
// wins and by how much is what counts.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/redistest"
)

func main() {
	log.SetFlags(0)
	one := flag.Bool("one", false, "measure on one server; of the other flags, rounds and round count then")
	servers := flag.Int("servers", 5, "independent servers")
	holed := flag.Int("holed", 2, "how many of them do not answer in the second half of the latencies: a minority")
	contenders := flag.Int("contenders", 20, "who want the same key, each with connections of its own")
	rounds := flag.Int("rounds", 3, "rounds of each side, in turn")
	round := flag.Duration("round", 3*time.Second, "the time of a round")
	latencies := flag.Duration("latencies", 10*time.Second,
		"the time for the latencies of each side; it may be exceeded by one call")
	flag.Parse()
	if *one {
		if err := runOne(*rounds, *round); err != nil {
			log.Fatal("bench: ", err)
		}
		return
	}
	if err := run(*servers, *holed, *contenders, *rounds, *round, *latencies); err != nil {
		log.Fatal("bench: ", err)
	}
}

func run(servers, holed, contenders, rounds int, round, latencies time.Duration) error {
	fmt.Printf("%s, %s/%s, %d CPUs, servers on loopback\n", runtime.Version(), runtime.GOOS, runtime.GOARCH,
		runtime.NumCPU())
	var addrs []string
	var proxies []*faultproxy.Proxy
	for range servers {
		server, err := redistest.Start(redistest.Options{})
		if err != nil {
			return err
		}
		defer func() { _ = server.Close() }()
		proxy, err := faultproxy.Start(server.Addr())
		if err != nil {
			return err
		}
		defer func() { _ = proxy.Close() }()
		addrs, proxies = append(addrs, server.Addr()), append(proxies, proxy)
	}
	logging.Disable() // of connections that fail, as they are to

	fmt.Printf("\n%d contenders for one key on %d servers, who do nothing else:\n", contenders, servers)
	if err := contend(redlocks(), addrs, contenders, contenders, rounds, round, 0, 0); err != nil {
		return err
	}
	const work, rest = time.Millisecond, 50 * time.Millisecond
	fmt.Printf("\nThe same, but they hold it for %v, and are away for up to %v:\n", work, rest)
	if err := contend(redlocks(), addrs, contenders, contenders, rounds, round, work, rest); err != nil {
		return err
	}
	fmt.Printf("\n%d who arrive together on %d servers, and want the key once each:\n", contenders, servers)
	if err := herd(redlocks(), addrs, contenders, rounds); err != nil {
		return err
	}
	fmt.Printf("\nOne lock and unlock on %d servers, without contention:\n", servers)
	if err := measure(redlocks(), proxies, holed, latencies); err != nil {
		return err
	}
	const half = 5
	fmt.Printf("\n%d of ours beside %d of redsync on one server, who hold the key for %v and then rest:\n", half, half,
		held)
	return share(addrs[:1], half, rounds, round)
}

// table returns where to write a table to, and what prints it.
func table() *tabwriter.Writer {
	return tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
}
