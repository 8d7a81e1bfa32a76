//go:build unix

package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// texts returns what mutants of a source look like, and checks that each changes it.
func texts(t *testing.T, file, source string) (all []string) {
	t.Helper()
	mutants, err := mutate(file, []byte(source))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		if string(m.apply()) == source {
			t.Errorf("%s changes nothing", m)
		}
		all = append(all, strings.TrimPrefix(m.String(), file+" "))
	}
	if sorted := slices.Sorted(slices.Values(all)); len(slices.Compact(sorted)) != len(all) {
		t.Errorf("two mutants look the same: %q", all)
	}
	return all
}

func TestMutateGo(t *testing.T) {
	t.Parallel()
	got := texts(t, "x.go", `package x

const limit = 3

func (c *client) get(a, b int) bool {
	c.asked++
	if a < b {
		f(a, b)
	}
	return a == limit && true
}
`)
	want := []string{
		"declarations: «3» => «4»", "declarations: «3» => «30»",
		"client.get: «c.asked++» => nothing",
		"client.get: «a < b» => «true || a < b»", "client.get: «a < b» => «false && (a < b)»",
		"client.get: «<» => «<=»", "client.get: «<» => «>=»",
		"client.get: «f(a, b)» => nothing", "client.get: «a, b» => «b, a»",
		"client.get: «&&» => «||»", "client.get: «==» => «!=»", "client.get: «true» => «false»",
	}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(slices.Sorted(slices.Values(want)), "\n"))
	}
}

func TestMutateLua(t *testing.T) {
	t.Parallel()
	got := texts(t, "x.lua", `-- if this == that then: a comment
local function free(lock)
  redis.call('DEL', lock)
end
if holder == value then return 1 end
`)
	want := []string{
		"free: «redis.call('DEL', lock)» => nothing",
		"script: «==» => «~=»", "script: «1» => «2»",
		"script: «if holder == value then» => «if true then»", "script: «if holder == value then» => «if false then»",
	}
	for i := range got { // the leading white space of a statement is part of it
		got[i] = strings.Replace(got[i], "«  ", "«", 1)
	}
	if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(slices.Sorted(slices.Values(want)), "\n"))
	}
}

// All targets can be mutated, and what survivors.txt says is of mutants that there are.
func TestTargets(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	there := make(map[string]bool)
	for name, target := range targets {
		mutants, err := options{target: target, files: "*"}.mutants()
		if err != nil {
			t.Fatal(err)
		}
		if len(mutants) < 100 {
			t.Errorf("%s has %d mutants", name, len(mutants))
		}
		for _, m := range mutants {
			there[m.String()] = true
		}
	}
	known, err := readSurvivors("internal/mutate/survivors.txt")
	if err != nil {
		t.Fatal(err)
	}
	for m, reason := range known {
		if !there[m] {
			t.Errorf("survivors.txt has a mutant that there is not any more: %s", m)
		}
		if reason == "" {
			t.Errorf("survivors.txt has no reason for %s", m)
		}
	}
}
