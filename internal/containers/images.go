package main

import (
	"os"
	"strings"
)

// images are where servers come from, by the names that tests have for them, if LOCKER_IMAGE_<NAME> does not say
// otherwise.
var images = map[string]string{
	"redis":     "redis:7.0",
	"postgres":  "postgres:15",
	"pgbouncer": "edoburu/pgbouncer:latest",
	"etcd":      "quay.io/coreos/etcd:v3.6.16",
}

// imageOf returns the image, or "" if there is none of that name.
func imageOf(name string) string {
	if image := os.Getenv("LOCKER_IMAGE_" + strings.ToUpper(name)); image != "" && images[name] != "" {
		return image
	}
	return images[name]
}
