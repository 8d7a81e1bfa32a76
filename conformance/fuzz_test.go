package conformance

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// FuzzFileName has several tests, of any names: each report has a file of its own in the directory, on every system.
func FuzzFileName(f *testing.F) {
	f.Add("example.com/pkg", "TestConformance", "TestConformance-2")
	f.Add("", "", "/")
	f.Add("..", "TestX/../y z", "testx/..:y*z")
	f.Add("long", strings.Repeat("é", 200), strings.Repeat("x", 5000))
	safe := regexp.MustCompile(`^[A-Za-z0-9._-]+[.]md$`)
	f.Fuzz(func(t *testing.T, pkg, test, other string) {
		names := &fileNames{taken: make(map[string]bool)}
		seen := make(map[string]string)
		for i, name := range []string{
			names.take(pkg, test), names.take(pkg, test), names.take(pkg, other), names.take(pkg, test+"-2"),
			names.take(other, test),
		} {
			if !safe.MatchString(name) || len(name) > 255 || filepath.Base(name) != name || !filepath.IsLocal(name) {
				t.Fatalf("of %q, %q, %q: %q", pkg, test, other, name)
			}
			of := fmt.Sprintf("%d of %q, %q, %q", i, pkg, test, other)
			if before, ok := seen[strings.ToLower(name)]; ok {
				t.Fatalf("%q is for %s and for %s", name, before, of)
			}
			seen[strings.ToLower(name)] = of
		}
	})
}

// FuzzParseSeed has seeds: what a failure shows draws the same again, and what is no seed is refused.
func FuzzParseSeed(f *testing.F) {
	f.Add(uint64(42), "42")
	f.Add(uint64(1)<<63, "0x2a")
	f.Add(uint64(0), " 1")
	f.Fuzz(func(t *testing.T, seed uint64, text string) {
		if got, err := parseSeed(strconv.FormatUint(seed, 10)); got != seed || err != nil {
			t.Errorf("seed %d: %d, %v", seed, got, err)
		}
		number := text != "" && strings.Trim(text, "0123456789") == ""
		if got, err := parseSeed(text); (err == nil) != number && text != "" && len(text) < 20 {
			t.Errorf("seed %q: %d, %v", text, got, err)
		}
	})
}

// FuzzParseVersion has versions of all forms: the numbers come back, and nothing else is taken for a release.
func FuzzParseVersion(f *testing.F) {
	f.Add(uint32(0), uint32(1), uint32(2), "v0.1.0-rc.1")
	f.Add(uint32(1), uint32(0), uint32(1<<31-1), "v1.2.3.4")
	f.Add(uint32(1), uint32(0), uint32(1<<31), "v")
	form := regexp.MustCompile(`^v\d+([.]\d+){0,2}$`)
	f.Fuzz(func(t *testing.T, major, minor, patch uint32, text string) {
		want := [3]int{int(major), int(minor), int(patch)}
		v, ok := parseVersion(fmt.Sprintf("v%d.%d.%d", major, minor, patch))
		if small := max(major, minor, patch) < 1<<31; ok != small || ok && v != want {
			t.Errorf("v%d.%d.%d: %v, %v", major, minor, patch, v, ok)
		}
		if _, ok := parseVersion(text); ok && !form.MatchString(text) {
			t.Errorf("%q is taken for a version", text)
		}
		if v := fmt.Sprintf("v%d.%d", major, minor); newer(v, v) || newer(v, v+".1") || newer("v"+text, "") {
			t.Errorf("%s is newer than itself", v)
		}
	})
}
