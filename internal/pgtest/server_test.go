package pgtest

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestQuick(t *testing.T) {
	s := New(t, Options{})
	t.Log(s.URL(), URL(t))
	s.Crash()
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(); err != nil {
		t.Fatal(err)
	}
	t.Log(s.LogTail())
}
