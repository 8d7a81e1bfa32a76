package locktest

import (
	"net"
	"strings"
	"testing"
)

// IsHost reports whether a text is the name of a host, or an IP address.
func IsHost(text string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
	return text != "" && strings.Trim(text, letters) == "" || net.ParseIP(text) != nil
}

// FuzzPassword has passwords that nobody has escaped. They end up anywhere, but must be in no error: check is called
// with a password that has the secret in it, and with what follows it in a URL. rests are examples of that.
func FuzzPassword(f *testing.F, rests []string, check func(t *testing.T, password, secret, rest string)) {
	const secret = "hunter2"
	for _, around := range []string{
		"", "#", "/", "?", "@", "%", ":", ",", " ", "[", "]", "?x=", "&", ";", "'", `\`, "`: ", "=",
	} {
		for _, rest := range rests {
			f.Add(around, "", rest)
			f.Add("", around, rest)
			f.Add(around, around, rest)
			f.Add("@"+around, around+"@", rest)
			f.Add("@"+around, around+"@host"+around, rest)
			f.Add("", "@host"+around, rest)
		}
	}
	f.Fuzz(func(t *testing.T, before, after, rest string) {
		if strings.Contains(rest, secret) {
			t.Skip("a secret twice")
		}
		check(t, before+secret+after, secret, rest)
	})
}
