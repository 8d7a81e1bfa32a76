package conformance

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"
)

// machineTime returns for how long the processors of this machine have worked so far, all programs counted, and how
// many there are. This process may be confined to a few of them.
func machineTime() (worked time.Duration, processors int, known bool) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, 0, false
	}
	defer f.Close() //nolint:errcheck // it was only read
	lines := bufio.NewScanner(f)
	lines.Scan()
	var user, nice, system, idle, iowait, irq, softirq, steal int64
	if n, _ := fmt.Sscanf(lines.Text(), "cpu %d %d %d %d %d %d %d %d",
		&user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal); n != 8 {
		return 0, 0, false
	}
	for lines.Scan() && strings.HasPrefix(lines.Text(), "cpu") { // one of them
		processors++
	}
	return time.Duration(user+nice+system+irq+softirq+steal) * tick, processors, processors > 0
}
