//go:build !linux

package pgtest

func memory() (dir string) { return "" }

func removeMemory() {}
