package child

import (
	"fmt"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// On Windows, the command and all that it starts are in a job object, which is ended when this process is, in any way.
// There are no signals but those of the console, which reach the command by themselves.

var relayed = []os.Signal{os.Interrupt, syscall.SIGTERM}

// Harmful are signals that would end this process while its command works on: there are none.
var Harmful []os.Signal

// Ends reports whether a signal ends a program that has no use for it.
func Ends(os.Signal) bool { return true }

// ShutDownBy reports whether a signal is meant to end the command for good.
func (c *Child) ShutDownBy(os.Signal) bool { return true }

type terminal struct{}

func openTerminal() *terminal { return nil }
func (*terminal) close()      {}

type platform struct{}

// job is that of this process, which it never closes. 0 before the first command.
var job windows.Handle

// makeJob makes the job, or returns it.
func makeJob() (windows.Handle, error) {
	if job != 0 {
		return job, nil
	}
	j, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return 0, err
	}
	var limits windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(j, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)))
	if err != nil {
		_ = windows.CloseHandle(j)
		return 0, err
	}
	job = j
	return job, nil
}

// start starts the command, and puts it into the job. What it starts before that is not in it.
func (c *Child) start(path string, args, env []string) error {
	j, err := makeJob()
	if err != nil {
		return fmt.Errorf("a job object: %w", err)
	}
	p, err := os.StartProcess(path, args, &os.ProcAttr{Env: env, Files: inherited()})
	if err != nil {
		return err
	}
	h, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(p.Pid))
	if err == nil {
		err = windows.AssignProcessToJobObject(j, h)
		_ = windows.CloseHandle(h)
	}
	if err != nil {
		_ = p.Kill()
		_, _ = p.Wait()
		return fmt.Errorf("a job object: %w", err)
	}
	c.pid = p.Pid
	go c.reap(p)
	return nil
}

// reap waits for the command, and then for all others in the job.
func (c *Child) reap(p *os.Process) {
	status := Status{Code: 1}
	if state, err := p.Wait(); err == nil {
		status.Code = state.ExitCode()
	}
	c.end(status)
	for c.Count() > 0 {
		time.Sleep(20 * time.Millisecond)
	}
	c.leave()
}

// Signal does nothing: the console tells the command itself.
func (c *Child) Signal(os.Signal) {}

// Terminate does nothing: there is no way to ask any command to end.
func (c *Child) Terminate() {}

// Kill ends all that is in the job.
func (c *Child) Kill() { _ = windows.TerminateJobObject(job, 1) }

// accounting is JOBOBJECT_BASIC_ACCOUNTING_INFORMATION.
type accounting struct {
	userTime, kernelTime, periodUserTime, periodKernelTime int64
	pageFaults, processes, active, terminated              uint32
}

// Count returns how many processes of the command there are.
func (c *Child) Count() int {
	var a accounting
	const basicAccounting = 1
	err := windows.QueryInformationJobObject(job, basicAccounting, uintptr(unsafe.Pointer(&a)),
		uint32(unsafe.Sizeof(a)), nil)
	if err != nil {
		return 0
	}
	return int(a.active)
}

// LetGo gives up the standard input and output of this process, which the command has: so whoever writes or reads at
// the other end learns it when the command has closed them.
func LetGo() {
	_ = os.Stdin.Close()
	_ = os.Stdout.Close()
}
