package testserver

import (
	"os"
	"sync"
)

// memory is a directory in memory for all servers of one product. It is made
// when it is first needed.
type memory struct {
	once sync.Once
	lock *os.File // nil: there is no directory
}

// TempDir is where servers have their files; empty means the usual place.
// Tests have many servers for a short time, with many or large files, which
// keeps some file systems very busy. So it is in memory where there is plenty
// of that, if $TMPDIR does not want something else. Main removes it.
func (p *Product) TempDir() string {
	if os.Getenv("TMPDIR") != "" {
		return ""
	}
	return p.memory.dir(p.Package + "-")
}
