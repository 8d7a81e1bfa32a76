package pgtest

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// memoryDir is a file system in memory that every Linux has. In a container it
// may be tiny.
const memoryDir = "/dev/shm"

// memory returns a directory in memory for the servers of this process, or ""
// where there is no room for some dozens of them.
var memory = sync.OnceValue(func() (dir string) {
	const (
		tmpfs = 0x01021994 // TMPFS_MAGIC, which package syscall lacks
		room  = 2 << 30
	)
	var fs syscall.Statfs_t
	err := syscall.Statfs(memoryDir, &fs)
	if err != nil || fs.Type != tmpfs || fs.Bavail*uint64(fs.Bsize) < room {
		return ""
	}
	sweep()
	if dir, err = os.MkdirTemp(memoryDir, "pgtest-"); err != nil {
		return ""
	}
	// Others run the servers. A sweep may come before the lock.
	if memoryLock = lock(dir); memoryLock == nil || os.Chmod(dir, 0o711) != nil {
		os.Remove(dir)
		return ""
	}
	return dir
})

// memoryLock is what keeps others from removing the directory of this process,
// up to its end, however that comes.
var memoryLock *os.File

// removeMemory removes the directory, if there is one.
func removeMemory() {
	if memoryLock != nil {
		os.RemoveAll(memoryLock.Name())
	}
}

// lock locks a directory. It returns nil if that is not possible.
func lock(dir string) *os.File {
	file, err := os.Open(dir)
	if err != nil {
		return nil
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil
	}
	return file
}

// sweep removes the directories of processes that were killed: their memory
// would be lost until the next start of the machine.
func sweep() {
	dirs, err := filepath.Glob(filepath.Join(memoryDir, "pgtest-*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		if file := lock(dir); file != nil {
			os.RemoveAll(dir)
			file.Close()
		}
	}
}
