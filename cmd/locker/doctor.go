package main

import "github.com/spf13/cobra"

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{Use: "doctor", Short: "Check the store, and say what to do", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { return nil }}
}
