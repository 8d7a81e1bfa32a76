//go:build man

package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func init() { further = append(further, (*app).manCommand) }

// manCommand writes the manual pages, for packages:
//
//	go run -tags man ./cmd/locker man DIRECTORY
//
// It is not in the program that people have, as what it needs would be initialised each time.
func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIRECTORY",
		Short:  "Write the manual pages",
		Args:   cobra.ExactArgs(1),
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true // or each build differs
			epoch := time.Unix(0, 0).UTC()
			header := &doc.GenManHeader{Title: "LOCKER", Section: "1", Source: version(), Date: &epoch}
			if err := os.MkdirAll(args[0], 0o755); err != nil { //nolint:gosec // everybody may read them
				return err
			}
			return doc.GenManTree(root, header, args[0])
		},
	}
}
