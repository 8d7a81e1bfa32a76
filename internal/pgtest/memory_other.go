//go:build !linux

package pgtest

const memoryDir = ""

func hasRoomInMemory() bool { return false }
