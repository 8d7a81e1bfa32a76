package contained

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// FuzzPath has programs in images: what went into the path is what is asked for, also if it was joined in two steps.
func FuzzPath(f *testing.F) {
	f.Add("postgres", "initdb")
	f.Add("etcd", "bin/etcd")
	f.Add("redis", "..")
	f.Fuzz(func(t *testing.T, image, program string) {
		if strings.Contains(image, "/") || image != path.Clean(image) || strings.HasPrefix(image, ".") || program == "" ||
			program != path.Clean(program) || strings.HasPrefix(program, "/") || strings.HasPrefix(program, ".") {
			t.Skip("not a program in an image")
		}
		for _, p := range []string{Path(image, program), path.Join(Path(image), program)} {
			if r := NewRequest(p, nil, "", nil, ""); !Is(p) || r.Image != image || r.Program != program {
				t.Errorf("%q of %q is %q: %q of %q", program, image, p, r.Program, r.Image)
			}
		}
		if Is(program) != strings.HasPrefix(program, "container:") {
			t.Errorf("%q is in an image: %v", program, Is(program))
		}
		changed := "LOCKER_TEST_FUZZ=" + strings.ReplaceAll(program, "\x00", "")
		if r := NewRequest(Path(image, program), nil, "", []string{changed}, ""); !slices.Equal(r.Env, []string{changed}) {
			t.Errorf("the environment %q is passed on as %q", changed, r.Env)
		}
	})
}
