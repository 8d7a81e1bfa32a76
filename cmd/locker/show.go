package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockerkit/locker"
)

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show KEY [KEY...]",
		Short: "Show who holds a lock, and who waits for it",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, keys []string) error {
			return a.asking(func(ctx context.Context, c *locker.Client) error {
				for _, key := range keys {
					info, err := c.Inspect(ctx, key)
					if err != nil {
						return err
					}
					if err := a.show(info); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list [PREFIX]",
		Short: "List the locks that are held, by the beginning of their keys",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.asking(func(ctx context.Context, c *locker.Client) error { return a.list(ctx, c, first(args)) })
		},
	}
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// asking opens the store for a question, which a signal ends.
func (a *app) asking(ask func(context.Context, *locker.Client) error, opts ...locker.Option) error {
	ctx := catchSignals().ctx
	c, err := a.open(ctx, opts...)
	if err == nil {
		defer a.closeStore(c)
		err = ask(ctx, c)
	}
	return ofWait(ctx, err)
}

// lockObject is a lock in JSON. What the store does not know is not there.
type lockObject struct {
	Key     string         `json:"key"`
	Held    bool           `json:"held"`
	Holders []holderObject `json:"holders,omitempty"`
	Waiting int            `json:"waiting"`
	Waiters []waiterObject `json:"waiters,omitempty"`
}

type holderObject struct {
	Name    string  `json:"name,omitempty"`
	Mode    string  `json:"mode"`
	Slot    *int    `json:"slot,omitempty"`
	Token   uint64  `json:"token,omitempty"`
	Since   string  `json:"since,omitempty"`
	Left    float64 `json:"left_seconds,omitempty"`
	Session string  `json:"session,omitempty"`
}

type waiterObject struct {
	Name    string `json:"name,omitempty"`
	Mode    string `json:"mode"`
	Since   string `json:"since,omitempty"`
	Session string `json:"session,omitempty"`
}

func objectOf(info locker.LockInfo) lockObject {
	o := lockObject{Key: info.Key, Held: len(info.Holders) > 0, Waiting: info.Waiting}
	for _, h := range info.Holders {
		holder := holderObject{
			Name: h.Name, Mode: h.Mode.String(), Token: h.Token, Since: moment(h.Since), Left: h.Left.Seconds(),
			Session: h.Session,
		}
		if h.Mode == locker.ModeSlots {
			holder.Slot = &h.Slot
		}
		o.Holders = append(o.Holders, holder)
	}
	for _, w := range info.Waiters {
		o.Waiters = append(o.Waiters, waiterObject{w.Name, w.Mode.String(), moment(w.Since), w.Session})
	}
	return o
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// show prints what is known of a lock.
func (a *app) show(info locker.LockInfo) error {
	if a.json {
		return a.print(objectOf(info))
	}
	_, err := io.WriteString(a.stdout, describe(info))
	return err
}

// describe is a lock for people.
func describe(info locker.LockInfo) string {
	if len(info.Holders) == 0 && info.Waiting == 0 {
		return visible(info.Key) + ": free\n"
	}
	var text strings.Builder
	state := "held"
	if len(info.Holders) == 0 {
		state = "free"
	}
	fmt.Fprintf(&text, "%s: %s, %d waiting\n", visible(info.Key), state, info.Waiting)
	rows := [][]string{{"HOLDER", "MODE", "SINCE", "LEFT", "TOKEN", "SESSION"}}
	for _, h := range info.Holders {
		rows = append(rows, append(cells(h), visible(h.Session)))
	}
	if len(info.Waiters) > 0 {
		rows = append(rows, []string{"WAITER", "MODE", "SINCE", "", "", "SESSION"})
	}
	for _, w := range info.Waiters {
		rows = append(rows, []string{orUnknown(w.Name), w.Mode.String(), since(w.Since), "", "", visible(w.Session)})
	}
	var aligned strings.Builder
	table := newTable(&aligned)
	for _, row := range rows {
		fmt.Fprintf(table, "  %s\n", strings.Join(row, "\t"))
	}
	_ = table.Flush() // to a strings.Builder
	for line := range strings.Lines(aligned.String()) {
		text.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return text.String()
}

func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 4, 2, ' ', 0) }

// cells tells of a holder, as a part of a row of a table.
func cells(h locker.HolderInfo) []string {
	mode := h.Mode.String()
	if h.Mode == locker.ModeSlots {
		mode = fmt.Sprintf("slot %d", h.Slot)
	}
	left, token := "?", "?"
	if h.Left > 0 {
		left = h.Left.Round(100 * time.Millisecond).String()
	}
	if h.Token != 0 {
		token = fmt.Sprint(h.Token)
	}
	return []string{orUnknown(h.Name), mode, since(h.Since), left, token}
}

func orUnknown(text string) string { return visible(cmp.Or(text, "?")) }

func since(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	ago := time.Since(t)
	if ago < 24*time.Hour {
		return t.Local().Format(time.TimeOnly)
	}
	return t.Local().Format(time.DateTime)
}

// list prints the locks whose keys begin with a prefix.
func (a *app) list(ctx context.Context, c *locker.Client, prefix string) error {
	table := newTable(a.stdout)
	if !a.json {
		fmt.Fprintf(table, "KEY\tHOLDER\tMODE\tSINCE\tLEFT\tTOKEN\tWAITING\n")
	}
	for info, err := range c.List(ctx, prefix) {
		if err == nil && a.json {
			err = a.print(objectOf(info))
		}
		if err != nil {
			_ = table.Flush() // what came before is good
			return err
		}
		if !a.json {
			for _, h := range info.Holders {
				fmt.Fprintf(table, "%s\t%s\t%d\n", visible(info.Key), strings.Join(cells(h), "\t"), info.Waiting)
			}
		}
	}
	return table.Flush()
}
