package main

import (
	"io"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// app is one run of the program.
type app struct {
	stdout, stderr io.Writer

	// What all commands have as options.
	store   string
	prefix  string
	json    bool
	verbose bool
	quiet   bool

	endBy time.Time // if not zero, how long this process may wait for the store at its end
}

// further commands are those of builds with more than people need.
var further []func(*app) *cobra.Command

const exitCodes = `
Exit codes: that of COMMAND, or 128 and the signal that ended it. 64 usage,
77 denied, 78 store unfit, 126 COMMAND cannot be run, 127 there is none`

// command returns the tree of commands.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "locker",
		Short: "Run commands under a distributed lock; show, revoke and diagnose locks",
		Long: `Run commands under a distributed lock; show, revoke and diagnose locks.

The store is a URL in $` + storeVariable + `: redis://host, redis+sentinel://s1,s2/name,
redis+cluster://n1,n2, redlock://h1,h2,h3, postgres://host/db, etcd://h1,h2,h3.`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs, // what is not a command
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("{{.Version}}\n")
	root.SetUsageTemplate(usageTemplate)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%w: see %s -h", err, cmd.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.store, "store", "", "`URL` of the store, without a password")
	prefix := os.Getenv("LOCKER_PREFIX")
	flags.StringVar(&a.prefix, "prefix", prefix, "`TEXT` before each key (default: the store's own)")
	flags.BoolVar(&a.json, "json", false, "print objects of JSON, one in a line")
	flags.BoolVarP(&a.verbose, "verbose", "v", false, "tell what happens")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "tell errors only")
	root.AddCommand(
		a.runCommand(), a.leadCommand(), a.showCommand(), a.listCommand(), a.watchCommand(), a.revokeCommand(),
		a.breakCommand(), a.pingCommand(), a.doctorCommand(), a.versionCommand(),
	)
	for _, c := range further {
		root.AddCommand(c(a))
	}
	for _, c := range append(root.Commands(), root) {
		c.DisableFlagsInUseLine = true
		c.Args = refused(c.Args)
	}
	return root
}

// refused makes wrong arguments a matter of usage.
func refused(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage("%w: see %s -h", err, cmd.CommandPath())
		}
		return nil
	}
}

// usageTemplate fits a screen.
const usageTemplate = `Usage: {{if .HasAvailableSubCommands}}{{.CommandPath}} COMMAND [OPTIONS]

{{range .Commands}}{{if .IsAvailableCommand}}  {{rpad .Name 11}} {{.Short}}
{{end}}{{end}}{{else}}locker {{.Use}}
{{end}}{{if .HasAvailableLocalFlags}}
{{.LocalFlags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}
{{end}}{{if and .HasAvailableInheritedFlags (not .HasAvailableSubCommands)}}` +
	`{{.InheritedFlags.FlagUsagesWrapped 80 | trimTrailingWhitespaces}}
{{end}}`

// twoDashes lets long options be written with one dash, too, as programs in Go have them: -ttl is --ttl. What comes
// after "--" belongs to somebody else.
func twoDashes(root *cobra.Command, args []string) []string {
	known := make(map[string]bool)
	note := func(f *pflag.Flag) { known[f.Name] = true }
	root.PersistentFlags().VisitAll(note)
	for _, c := range root.Commands() {
		c.Flags().VisitAll(note)
	}
	for _, name := range []string{"help", "version"} {
		known[name] = true
	}
	one := regexp.MustCompile(`^-([a-z][a-z-]+)(=|$)`)
	args = append([]string(nil), args...)
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if match := one.FindStringSubmatch(arg); match != nil && known[match[1]] {
			args[i] = "-" + arg
		}
	}
	return args
}

// version returns the version by which the program was built, and the commit, as far as go build knows them.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "locker"
	}
	v := "locker " + strings.Trim(info.Main.Version, "()")
	return v + " " + info.GoVersion
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.print(map[string]string{"version": version()})
			}
			_, err := io.WriteString(a.stdout, version()+"\n")
			return err
		},
	}
}
