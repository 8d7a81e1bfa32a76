package main

import (
	"context"
	"fmt"
	"os/user"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerkit/locker"
)

func (a *app) revokeCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use:   "revoke [OPTIONS] KEY",
		Short: "Take a lock away safely: its holder is told, and ends first",
		Long: `Take a lock away from whoever holds it. The holder is told. The key is free when
it has let go, or its lease has ended: there are never two holders.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.taking(args[0], "revoked", func(ctx context.Context, c *locker.Client) error {
				return c.Revoke(ctx, args[0], reason)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` that the holder is told")
	return c
}

func (a *app) breakCommand() *cobra.Command {
	var reason string
	var others bool
	c := &cobra.Command{
		Use:   "break [OPTIONS] KEY",
		Short: "Free a lock at once, whoever holds it: for holders that are dead",
		Long: `Free a lock at once. Its holder may still be at work, and then there are two,
unless what they work on refuses old tokens. "locker revoke" is the safe way.`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			opts := []locker.BreakOption{locker.Reason(reason)}
			if others {
				opts = append(opts, locker.AlsoOthers())
			}
			return a.taking(args[0], "broken", func(ctx context.Context, c *locker.Client) error {
				return c.Break(ctx, args[0], opts...)
			})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "`TEXT` that the holder is told")
	c.Flags().BoolVar(&others, "also-others", false, "even if locks of other keys end with it (Postgres)")
	return c
}

// taking takes a lock away, and says so.
func (a *app) taking(key, done string, take func(context.Context, *locker.Client) error) error {
	return a.asking(func(ctx context.Context, c *locker.Client) error {
		if err := take(ctx, c); err != nil {
			return err
		}
		if a.json {
			return a.print(map[string]string{"key": key, "done": done})
		}
		_, err := fmt.Fprintf(a.stdout, "%s: %s\n", key, done)
		return err
	}, locker.Holder(personName()))
}

// personName is who takes a lock away, as its holder is told.
func personName() string {
	name := hostName()
	if u, err := user.Current(); err == nil {
		name = u.Username + "@" + name
	}
	return strings.ToValidUTF8(name[:min(len(name), locker.MaxHolderLen)], "?")
}

func (a *app) pingCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ping",
		Short: "Lock a key for a moment: does the store let this user lock?",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.asking(func(ctx context.Context, c *locker.Client) error {
				start := time.Now()
				if err := c.Ping(ctx); err != nil {
					return err
				}
				took := time.Since(start)
				if a.json {
					return a.print(map[string]any{"ok": true, "seconds": took.Seconds()})
				}
				_, err := fmt.Fprintf(a.stdout, "ok, %v\n", took.Round(10*time.Microsecond))
				return err
			})
		},
	}
}
