package testserver

import (
	"os"
	"path/filepath"
	"syscall"
)

// memoryDir is a file system in memory that every Linux has. In a container it
// may be tiny.
const memoryDir = "/dev/shm"

// dir returns the directory, which has a name of its own after the prefix, or
// "" where there is no room for some dozens of servers.
func (m *memory) dir(prefix string) (path string) {
	m.once.Do(func() { m.lock = makeMemory(prefix) })
	if m.lock == nil {
		return ""
	}
	return m.lock.Name()
}

// remove removes the directory, if there is one.
func (m *memory) remove() {
	m.once.Do(func() {})
	if m.lock != nil {
		os.RemoveAll(m.lock.Name())
	}
}

// makeMemory makes a directory and locks it, which keeps others from removing
// it up to the end of this process, however that comes.
func makeMemory(prefix string) *os.File {
	const (
		tmpfs = 0x01021994 // TMPFS_MAGIC, which package syscall lacks
		room  = 2 << 30
	)
	var fs syscall.Statfs_t
	err := syscall.Statfs(memoryDir, &fs)
	if err != nil || fs.Type != tmpfs || fs.Bavail*uint64(fs.Bsize) < room {
		return nil
	}
	sweep(prefix)
	dir, err := os.MkdirTemp(memoryDir, prefix)
	if err != nil {
		return nil
	}
	// Others may run the servers. A sweep may come before the lock.
	held := lock(dir)
	if held == nil || os.Chmod(dir, 0o711) != nil {
		os.Remove(dir)
		return nil
	}
	return held
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
func sweep(prefix string) {
	dirs, err := filepath.Glob(filepath.Join(memoryDir, prefix+"*"))
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
