package pgtest

import "syscall"

// memoryDir is a file system in memory that every Linux has. In a container it
// may be tiny.
const memoryDir = "/dev/shm"

// hasRoomInMemory reports whether there is a file system in memory, with room
// for the files of a few dozen servers.
func hasRoomInMemory() bool {
	const (
		tmpfs = 0x01021994 // TMPFS_MAGIC, which package syscall lacks
		room  = 2 << 30
	)
	var fs syscall.Statfs_t
	err := syscall.Statfs(memoryDir, &fs)
	return err == nil && fs.Type == tmpfs && fs.Bavail*uint64(fs.Bsize) >= room
}
