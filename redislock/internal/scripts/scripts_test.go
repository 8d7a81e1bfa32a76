package scripts

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// FuzzQuoteLua has prefixes of channels, which become a part of the scripts: nothing in them is code.
func FuzzQuoteLua(f *testing.F) {
	for _, prefix := range []string{"locker:", "", "'", `\`, "--", "$retention", "\n", "\x00", "é", "1", `]]`, "$channel"} {
		f.Add(prefix)
	}
	escaped := regexp.MustCompile(`\\(\d{3})`)
	plain := regexp.MustCompile(`^'([A-Za-z0-9:_.]|\\[0-9]{3})*'$`)
	f.Fuzz(func(t *testing.T, prefix string) {
		quoted := QuoteLua(prefix)
		if !plain.MatchString(quoted) {
			t.Fatalf("quoteLua(%q) is %s", prefix, quoted)
		}
		back := escaped.ReplaceAllStringFunc(quoted[1:len(quoted)-1], func(code string) string {
			n, _ := strconv.Atoi(code[1:])
			return string([]byte{byte(n)}) //nolint:gosec // more than 255 is not what was quoted
		})
		if back != prefix {
			t.Fatalf("quoteLua(%q) is %s, which stands for %q", prefix, quoted, back)
		}
		ours, usual := newScripts(prefix, DefaultTokenRetention), Default()
		all := func(s *Set) []*Script {
			return []*Script{s.Acquire, s.Release, s.Renew, s.Extend, s.Poll, s.Confirm, s.LineUp, s.Take}
		}
		for i, s := range all(ours) {
			base := all(usual)[i]
			if s.Source != strings.ReplaceAll(base.Source, QuoteLua(DefaultChannelPrefix), quoted) {
				t.Errorf("with the prefix %q a script is\n%s", prefix, s.Source)
			}
		}
	})
}
