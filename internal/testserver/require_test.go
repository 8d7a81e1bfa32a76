package testserver

import (
	"strings"
	"testing"
)

// FuzzRequire has values of LOCKER_REQUIRE_SERVERS: a server is required if its name is one of those between the
// commas, and not if it is only a part of one.
func FuzzRequire(f *testing.F) {
	f.Add("", "")
	f.Add("redis, ", " ,postgres")
	f.Add("node,docker", "redistest")
	f.Fuzz(func(t *testing.T, before, after string) {
		p := &Product{Name: "Redis"}
		for _, name := range []string{"redis", "Redis", " redis\t", "all", "1"} {
			if list := before + "," + name + "," + after; !p.required(list) {
				t.Errorf("%q does not require it", list)
			}
		}
		for _, list := range []string{before, after, before + "x,y" + after} {
			found := false
			for _, name := range strings.Split(list, ",") {
				name = strings.TrimSpace(name)
				found = found || strings.EqualFold(name, "redis") || strings.EqualFold(name, "all") || name == "1"
			}
			if p.required(list) && !found {
				t.Errorf("%q requires it", list)
			}
		}
	})
}
