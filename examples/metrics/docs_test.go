package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockerkit/locker"
)

// What the page about observability offers is checked here, and not in docs, because it depends on how the exporter
// renames metrics.
const (
	page      = "../../docs/observability.md"
	dashboard = "../../docs/observability/dashboard.json"
	alerts    = "../../docs/observability/alerts.yml"
	alertTest = "../../docs/observability/alerts_test.yml"
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// series is the values of each label of each metric.
type series map[string]map[string][]string

// everything returns what Prometheus gets to see when everything has happened, in each mode.
func everything(t *testing.T) series {
	t.Helper()
	o, handler, err := observed()
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []locker.Mode{locker.ModeExclusive, locker.ModeShared, locker.ModeSlots} {
		for _, failure := range []error{
			nil, context.Canceled, context.DeadlineExceeded, locker.ErrLocked, locker.ErrUnavailable, locker.ErrDenied,
			locker.ErrUnfit, locker.ErrClosed, locker.ErrInvalidKey, locker.ErrInvalidOption, errors.ErrUnsupported,
		} {
			ctx := o.LockStart(t.Context(), locker.LockStartInfo{Op: "lock", Store: "redis", Mode: mode})
			o.LockDone(ctx, locker.LockDoneInfo{Op: "lock", Store: "redis", Mode: mode, Err: failure})
			o.Renewed(locker.RenewedInfo{Store: "redis", Mode: mode, TTL: time.Second, Err: failure})
			o.LeaseDone(locker.LeaseDoneInfo{Store: "redis", Mode: mode, Err: failure})
		}
		for _, lost := range []bool{true, false} {
			o.LeaseDone(locker.LeaseDoneInfo{Store: "redis", Mode: mode, Err: locker.ErrLost, Expired: lost})
		}
		o.Retry(locker.RetryInfo{Store: "redis", Mode: mode, Err: locker.ErrUnavailable})
	}
	server := httptest.NewServer(handler)
	defer server.Close()
	all := make(series)
	for _, m := range sample.FindAllStringSubmatch(scrape(t, server.URL), -1) {
		if all[m[1]] == nil {
			all[m[1]] = map[string][]string{"job": nil, "instance": nil} // by the scrape
		}
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			all[m[1]][l[1]] = append(all[m[1]][l[1]], l[3])
		}
	}
	if len(all) < 8+3*2 {
		t.Fatalf("metrics: %v", all)
	}
	return all
}

var (
	sample   = regexp.MustCompile(`(?m)^(locker_\w+)\{(.*)\} \S+$`)
	matcher  = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	grouping = regexp.MustCompile(`by \(([^)]*)\)`)
	selector = regexp.MustCompile(`\b(locker_\w+)(?:\{([^}]*)\})?`)
	shown    = regexp.MustCompile(`\{\{ ?(?:\$labels\.)?(\w+) ?\}\}`)
)

// check checks the metrics and labels of a query, and the labels that are shown of its result.
func (all series) check(t *testing.T, query, show string) {
	t.Helper()
	var by []string
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for label := range strings.SplitSeq(g[1], ",") {
			by = append(by, strings.TrimSpace(label))
		}
	}
	selectors := selector.FindAllStringSubmatch(grouping.ReplaceAllString(query, "by ()"), -1)
	if len(selectors) == 0 {
		t.Errorf("%s: there is no metric", query)
	}
	for _, s := range selectors {
		labels := all[s[1]]
		if labels == nil {
			t.Errorf("%s: there is no metric %s", query, s[1])
			continue
		}
		for _, label := range by {
			if _, ok := labels[label]; !ok {
				t.Errorf("%s: %s has no label %s", query, s[1], label)
			}
		}
		for _, m := range matcher.FindAllStringSubmatch(s[2], -1) {
			values, ok := labels[m[1]]
			if !ok {
				t.Errorf("%s: %s has no label %s", query, s[1], m[1])
				continue
			}
			for want := range strings.SplitSeq(m[3], "|") {
				if want != "" && want[0] != '$' && values != nil && !slices.Contains(values, want) {
					t.Errorf("%s: %s is never %q", query, m[1], want)
				}
			}
		}
	}
	for _, l := range shown.FindAllStringSubmatch(show, -1) {
		if !slices.Contains(by, l[1]) {
			t.Errorf("%s shows %s, which is not in %q", show, l[1], by)
		}
	}
}

// queries returns those of the dashboard.
func queries(t *testing.T) (exprs []string, legends []string) {
	t.Helper()
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
		Templating struct {
			List []struct{ Query string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, dashboard)), &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			exprs = append(exprs, target.Expr)
			legends = append(legends, target.LegendFormat)
		}
	}
	for _, v := range board.Templating.List {
		if m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(v.Query); m != nil {
			exprs = append(exprs, "sum by ("+m[2]+") ("+m[1]+")")
			legends = append(legends, "")
		}
	}
	return exprs, legends
}

// TestNames: each metric and label that the dashboard and the alerts use is one that this program exports.
func TestNames(t *testing.T) {
	all := everything(t)
	exprs, legends := queries(t)
	used := ""
	for i, expr := range exprs {
		all.check(t, expr, legends[i])
		used += expr
	}
	rules := strings.Split(read(t, alerts), "- alert: ")[1:]
	for _, rule := range rules {
		expr, texts, _ := strings.Cut(rule, "labels:")
		all.check(t, expr, texts)
		used += expr
		name, _, _ := strings.Cut(rule, "\n")
		if !strings.Contains(read(t, page), "\n### "+name+"\n") {
			t.Errorf("the page says nothing about %s", name)
		}
		if !strings.Contains(read(t, alertTest), "alertname: "+name+"\n        exp_alerts:\n          - ") {
			t.Errorf("no test has %s fire", name)
		}
	}
	for line := range strings.Lines(read(t, alertTest)) {
		if strings.Contains(line, "- {series:") {
			all.check(t, line, "")
		}
	}
	for _, m := range regexp.MustCompile("`(locker_\\w+)").FindAllStringSubmatch(read(t, page), -1) {
		if all[m[1]] == nil && all[m[1]+"_count"] == nil && all["locker_leases"][m[1]] == nil {
			t.Errorf("the page: there is no metric or label %s", m[1])
		}
	}
	for name := range all {
		base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		if !strings.Contains(used, base) {
			t.Errorf("nothing shows %s", name)
		}
	}
	if len(rules) == 0 || len(exprs) == 0 {
		t.Error("nothing was checked")
	}
}

// TestPromtool has Prometheus's own tool read each query, and have the alerts fire.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("NOT PROVEN: promtool is not here (Debian has it in prometheus): queries and alerts were not tried")
	}
	exprs, _ := queries(t)
	rules := "groups: [{name: dashboard, rules: [\n"
	for _, expr := range exprs {
		expr = strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$store", ".*").Replace(expr)
		rules += "{record: a, expr: '" + expr + "'},\n"
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(file, []byte(rules+"]}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"check", "rules", "--lint=none", file}, {"check", "rules", alerts}, {"test", "rules", alertTest},
	} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
