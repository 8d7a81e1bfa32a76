//go:build unix

package main

import (
	"fmt"
	"os"
	"strings"
)

// readSurvivors reads the mutants that may survive, each with the reason: a line as mutate prints it, and below it,
// indented, why nobody can notice.
func readSurvivors(name string) (map[string]string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	known := make(map[string]string)
	mutant := ""
	for line := range strings.Lines(string(text)) {
		trimmed := strings.TrimSpace(line)
		switch {
		case trimmed == "", strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t"):
			mutant = trimmed
		case mutant == "":
			return nil, fmt.Errorf("%s: a reason without a mutant: %s", name, trimmed)
		default:
			known[mutant] = strings.TrimSpace(known[mutant] + " " + trimmed)
		}
	}
	return known, nil
}
