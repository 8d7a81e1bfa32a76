package conn

import (
	"os"
	"testing"

	"github.com/lockerkit/locker/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m)) }
