package peers

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// pages is what people read who move. Their code is that of this package.
var pages = []string{"migrating-to-redislock.md", "comparison.md"}

func TestPagesHaveThisCode(t *testing.T) {
	t.Parallel()
	for _, page := range pages {
		text := string(must(os.ReadFile(filepath.Join("..", "..", "docs", page)))(t))
		for lang, files := range map[string]string{"go": "*_test.go", "js": filepath.Join("node", "*.mjs")} {
			source := sourceOf(t, files)
			blocks := strings.Split(text, "```"+lang+"\n")[1:]
			if len(blocks) == 0 && lang == "go" {
				t.Errorf("there is no code on %s", page)
			}
			for _, block := range blocks {
				block, _, _ = strings.Cut(block, "```")
				if !strings.Contains(source, "\n"+block) {
					t.Errorf("this is on %s and not in %s:\n%s", page, files, block)
				}
			}
		}
	}
}

// sourceOf returns the files whose names match, with one level of indentation less: pages show what is inside of
// functions.
func sourceOf(t *testing.T, names string) string {
	t.Helper()
	var source []byte
	for _, file := range must(filepath.Glob(names))(t) {
		source = append(source, must(os.ReadFile(file))(t)...)
	}
	for _, indent := range []string{"\n\t", "\n  "} {
		source = bytes.ReplaceAll(source, []byte(indent), []byte("\n"))
	}
	return string(source)
}
