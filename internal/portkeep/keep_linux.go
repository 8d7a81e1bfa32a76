package portkeep

import (
	"os"
	"sync"
	"syscall"
)

// keep binds a socket and never listens on it. Such a socket refuses
// connections, keeps the kernel from handing the port out, and, as it has
// SO_REUSEADDR, does not stop another socket with SO_REUSEADDR from listening.
func keep() (*Port, error) {
	// CLOEXEC: a child that inherited the socket would keep the port for ever.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	number, err := bind(fd)
	if err != nil {
		syscall.Close(fd)
		return nil, err
	}
	// Once: a second close could hit a descriptor that was given out anew.
	release := sync.OnceValue(func() error {
		return os.NewSyscallError("close", syscall.Close(fd))
	})
	return &Port{number: number, release: release}, nil
}

func bind(fd int) (port int, err error) {
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return 0, os.NewSyscallError("setsockopt", err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	addr, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return addr.(*syscall.SockaddrInet4).Port, nil
}
