package testserver

import (
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

// attributes has the program die with this process, even if that is killed and
// cannot clean up. Go asks the kernel for that after the change of user, which
// would undo it.
func (c Command) attributes() *syscall.SysProcAttr {
	sig := c.DeathSignal
	if sig == 0 {
		sig = syscall.SIGKILL
	}
	return &syscall.SysProcAttr{Pdeathsig: sig, Credential: c.User.credential()}
}

// fork starts the command.
//
// The kernel takes "parent" to mean the thread that forked: Pdeathsig is sent
// when that thread ends, and the Go runtime ends threads as it likes. So all
// children are forked by one goroutine which has a thread for itself and never
// lets go of it.
func fork(cmd *exec.Cmd) error {
	result := make(chan error)
	forker() <- func() { result <- cmd.Start() }
	return <-result
}

// forker returns the channel to the goroutine that forks.
var forker = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread() // for ever: the goroutine never returns
		for f := range work {
			f()
		}
	}()
	return work
})

// Pause stops the process and waits until all of its threads have stopped.
func (p *hostProcess) Pause() error {
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	// WNOWAIT: only look, and leave the process to be collected by exec.Cmd.
	if _, err := waitid(p.Pid, syscall.WSTOPPED|syscall.WEXITED|syscall.WNOWAIT); err != nil {
		return err
	}
	// Was it the end? Then there is an end to be seen at once.
	ended, err := waitid(p.Pid, syscall.WEXITED|syscall.WNOWAIT|syscall.WNOHANG)
	if err == nil && ended {
		return os.ErrProcessDone
	}
	return err
}

// waitid waits until the child process has changed its state in one of the
// ways in options. With WNOHANG it does not wait, and may report no change.
func waitid(pid, options int) (changed bool, err error) {
	const pPID = 1             // P_PID, which package syscall lacks
	var siginfo [128 / 4]int32 // siginfo_t; si_signo comes first, 0 if no change
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, pPID, uintptr(pid),
			uintptr(unsafe.Pointer(&siginfo)), uintptr(options), 0, 0)
		switch errno {
		case 0:
			return siginfo[0] != 0, nil
		case syscall.EINTR:
		case syscall.ECHILD: // it has ended and was collected
			return false, os.ErrProcessDone
		default:
			return false, os.NewSyscallError("waitid", errno)
		}
	}
}

// Resume lets a stopped process go on.
func (p *hostProcess) Resume() error { return p.Signal(syscall.SIGCONT) }
