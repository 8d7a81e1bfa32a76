//go:build !unix

package redislock_test

import "time"

func ownCPU() time.Duration { return 0 }
