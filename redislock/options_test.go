package redislock

import (
	"crypto/tls"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestUniversalLosesNothing fills in whatever redis.ParseURL could: numbers, texts, switches and TLS. All of it arrives
// in the options of a universal client, but for what those have no place for, which is listed here. If a new version of
// go-redis fails this, a parameter of the URL may get lost: see whether redis.ParseURL sets the field.
func TestUniversalLosesNothing(t *testing.T) {
	noPlace := []string{
		"Network",     // go-redis tells a socket by the slash that its address begins with
		"Addr",        // it is in Addrs
		"NodeAddress", // of a node, set by the client of a cluster
	}
	o := new(redis.Options)
	from := reflect.ValueOf(o).Elem()
	filled := 0
	for i := range from.NumField() {
		if !from.Type().Field(i).IsExported() {
			continue
		}
		filled++
		switch field := from.Field(i); field.Interface().(type) {
		case string:
			field.SetString("text")
		case bool:
			field.SetBool(true)
		case time.Duration, int, int64:
			field.SetInt(7)
		case *tls.Config:
			field.Set(reflect.ValueOf(&tls.Config{ServerName: "host"})) //nolint:gosec // no connection is made
		default:
			filled--
		}
	}
	if filled < 30 {
		t.Fatalf("only %d fields were filled in", filled)
	}
	to := reflect.ValueOf(universal(o, []string{"text"})).Elem()
	for i := range from.NumField() {
		name := from.Type().Field(i).Name
		if from.Field(i).IsZero() || name == "DialerRetries" || slices.Contains(noPlace, name) {
			continue // DialerRetries is ours
		}
		if got := to.FieldByName(name); !got.IsValid() {
			t.Errorf("%s has no place in the options of a universal client", name)
		} else if !reflect.DeepEqual(got.Interface(), from.Field(i).Interface()) {
			t.Errorf("%s is lost: %v; want %v", name, got, from.Field(i))
		}
	}
}
