// Command server is etcd. It is a module of its own, so that what etcd needs is no business of who uses this library.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

func main() {
	wal.SegmentSizeBytes = 4 << 20 // not 64 MB, of which a member takes two at once: the servers are many and in memory
	etcdmain.Main(os.Args)
}
