package doctor_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/lockerkit/locker/cmd/locker/internal/doctor"
	"github.com/lockerkit/locker/etcdlock"
	"github.com/lockerkit/locker/internal/etcdtest"
	"github.com/lockerkit/locker/internal/faultproxy"
	"github.com/lockerkit/locker/internal/strangers"
	"github.com/lockerkit/locker/internal/testserver"
)

const onEtcd = kind("etcd")

func urlOf(endpoints ...string) string { return "etcd://" + strings.Join(endpoints, ",") }

// unasked is what cannot be found out where others are wrong.
var unasked = want{status: doctor.Unknown}

// alone is what is wrong with a cluster of one member.
var alone = want{doctor.Warn, "Use three members"}

func TestEtcdHealthy(t *testing.T) {
	t.Parallel()
	c := etcdtest.New(t, etcdtest.Options{Members: 3})
	onEtcd.examine(t, patient(urlOf(c.Endpoints()...)), nil)
	kvs := must(c.Client(t).Get(t.Context(), "", clientv3.WithPrefix()))(t).Kvs
	if len(kvs) > 0 {
		t.Errorf("left behind: %v", kvs)
	}
	onEtcd.examine(t, patient(urlOf(c.Endpoints()[0])), map[string]want{"endpoints": {doctor.Warn, "Name all members"}})

	c.Member(0).Kill()
	c.Leader(t)
	onEtcd.examine(t, patient(urlOf(c.Endpoints()...)), map[string]want{
		"connect": {doctor.Fail, "Is the server running?"}, "members": {doctor.Warn, "Bring them back"},
	})
	c.Member(1).Kill()
	err := testserver.Poll(t.Context(), time.Minute, func(ctx context.Context) error {
		status, err := c.Client(t).Status(ctx, c.Endpoints()[2])
		if err == nil && status.Leader != 0 {
			err = fmt.Errorf("it still follows %x", status.Leader)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	onEtcd.eventually(t, hasty(urlOf(c.Endpoints()...)), "leader", map[string]want{
		"connect": {doctor.Fail, "Is the server running?"}, "members": {doctor.Warn, "Bring them back"},
		"leader": {doctor.Fail, "a majority of them runs"}, "lock": {doctor.Fail, "First mend"},
		"alarms": unasked, "election timeout": unasked, "round trip": unasked,
		"permission to lock": unasked, "permission to inspect": unasked,
	})
}

func TestEtcdFewMembers(t *testing.T) {
	t.Parallel()
	for members, do := range map[int]string{1: "Use three members", 2: "Use three members", 4: "Add a member"} {
		c := etcdtest.New(t, etcdtest.Options{Members: members})
		onEtcd.examine(t, patient(urlOf(c.Endpoints()...)), map[string]want{"members": {doctor.Warn, do}})
	}
}

func TestEtcdOldVersion(t *testing.T) {
	t.Parallel()
	addr := lying(t, etcdtest.Address(t), func(said []byte) []byte {
		return bytes.ReplaceAll(said, []byte("3.6."), []byte("3.4."))
	})
	onEtcd.examine(t, patient(urlOf(addr)), map[string]want{
		"version": {doctor.Fail, "etcd 3.5.13 or later"}, "lock": {doctor.Fail, "First mend"}, "members": alone,
	})
}

func TestEtcdLearner(t *testing.T) {
	t.Parallel()
	c := etcdtest.New(t, etcdtest.Options{})
	learner := c.AddLearner(t)
	onEtcd.examine(t, patient(urlOf(c.Endpoints()[0], learner)), map[string]want{
		"role": {doctor.Fail, "Promote it"}, "members": alone,
	})
	onEtcd.examine(t, patient(urlOf(learner)), map[string]want{
		"role": {doctor.Fail, "Promote it"}, "lock": {doctor.Fail, "First mend"},
		"members": unasked, "alarms": unasked, "election timeout": unasked, "permission to lock": unasked,
		"permission to inspect": unasked, "round trip": unasked,
	})
}

func TestEtcdAlarms(t *testing.T) {
	t.Parallel()
	c := etcdtest.New(t, etcdtest.Options{})
	client := c.Client(t)
	status := must(client.Status(t.Context(), c.Endpoints()[0]))(t)
	for _, alarm := range []struct {
		kind  pb.AlarmType
		do    string
		wants map[string]want
	}{
		{pb.AlarmType_NOSPACE, "defragment", map[string]want{
			"lock": {doctor.Fail, "First mend"}, "election timeout": unasked,
		}},
		{pb.AlarmType_CORRUPT, "Replace the member", map[string]want{
			"lock": consequence, "election timeout": consequence, "permission to lock": consequence,
			"permission to inspect": consequence, "round trip": consequence,
		}},
	} {
		maintenance := pb.NewMaintenanceClient(client.ActiveConnection())
		request := &pb.AlarmRequest{
			Action: pb.AlarmRequest_ACTIVATE, MemberID: status.Header.MemberId, Alarm: alarm.kind,
		}
		if _, err := maintenance.Alarm(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		alarm.wants["alarms"] = want{doctor.Fail, alarm.do}
		alarm.wants["members"] = alone
		onEtcd.examine(t, patient(urlOf(c.Endpoints()...)), alarm.wants)
		request.Action = pb.AlarmRequest_DEACTIVATE
		if _, err := maintenance.Alarm(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	onEtcd.examine(t, patient(urlOf(c.Endpoints()...)), map[string]want{"members": alone})
}

// TestEtcdDatabase has a server that says other sizes than it has: the real one grows when it likes.
func TestEtcdDatabase(t *testing.T) {
	t.Parallel()
	// The message has the version, the size of the database as field 3, and the quota as field 12: numbers of 7 bits
	// in a byte, the lowest first, which may have more bytes than they need.
	const sizeField, quotaField, quota = 3 << 3, 12 << 3, 1_000_000
	number := func(n int) []byte { return []byte{byte(n) | 0x80, byte(n>>7) | 0x80, byte(n>>14) | 0x80} }
	twoGiB := []byte{quotaField, 0x80, 0x80, 0x80, 0x80, 8}
	said := slices.Concat([]byte{quotaField}, number(quota), []byte{0x80, 0})
	sizes := map[doctor.Status]int{doctor.OK: quota / 2, doctor.Warn: quota / 10 * 9, doctor.Fail: quota}
	for status, used := range sizes {
		addr := lying(t, etcdtest.Address(t), func(b []byte) []byte {
			b = bytes.ReplaceAll(b, twoGiB, said)
			if _, after, found := bytes.Cut(b, []byte("3.6.")); found {
				i := bytes.IndexByte(after, sizeField) // behind the last digits of the version
				if size := after[i+1:]; len(size) > 3 && size[1] >= 0x80 && size[2] < 0x80 {
					copy(size, number(used))
					size[2] &= 0x7f
				}
			}
			return b
		})
		wants := map[string]want{"members": alone}
		if status != doctor.OK {
			wants["database"] = want{status, "--quota-backend-bytes"}
		}
		for _, r := range onEtcd.examine(t, patient(urlOf(addr)), wants) {
			if r.Check == "database" && !strings.Contains(r.Found, "976.6 KiB") {
				t.Errorf("the quota is not what was said: %s", line(r))
			}
		}
	}
}

func TestEtcdElectionTimeout(t *testing.T) {
	t.Parallel()
	c := etcdtest.New(t, etcdtest.Options{Flags: []string{"--election-timeout=3000"}}) // the shortest TTL is 5 s
	o := patient(urlOf(c.Endpoints()...))
	o.TTL = 4 * time.Second
	onEtcd.examine(t, o, map[string]want{
		"election timeout": {doctor.Fail, "--election-timeout"}, "members": alone, "round trip": consequence,
	})
	o.TTL = 9 * time.Second
	onEtcd.examine(t, o, map[string]want{
		"election timeout": {doctor.Warn, "--election-timeout"}, "members": alone, "round trip": consequence,
	})
}

func TestEtcdPermissions(t *testing.T) {
	t.Parallel()
	c := etcdtest.New(t, etcdtest.Options{Flags: []string{"--bcrypt-cost=4"}})
	client := c.Client(t)
	ctx := t.Context()
	all := map[string]clientv3.PermissionType{
		"app":    clientv3.PermissionType(clientv3.PermReadWrite),
		"viewer": clientv3.PermissionType(clientv3.PermRead),
		"writer": clientv3.PermissionType(clientv3.PermWrite),
	}
	must(client.RoleAdd(ctx, "root"))(t)
	must(client.UserAdd(ctx, "root", secret))(t)
	must(client.UserGrantRole(ctx, "root", "root"))(t)
	must(client.UserAdd(ctx, "nothing", secret))(t)
	for name, permission := range all {
		must(client.RoleAdd(ctx, name))(t)
		must(client.RoleGrantPermission(ctx, name, etcdlock.DefaultPrefix,
			clientv3.GetPrefixRangeEnd(etcdlock.DefaultPrefix), permission))(t)
		must(client.UserAdd(ctx, name, secret))(t)
		must(client.UserGrantRole(ctx, name, name))(t)
	}
	const escaped = "a%40b/"
	must(client.RoleGrantPermission(ctx, "app", escaped, clientv3.GetPrefixRangeEnd(escaped), all["app"]))(t)
	must(client.AuthEnable(ctx))(t)

	lock := want{doctor.Fail, "--prefix=true readwrite locker/"}
	inspect := want{doctor.Warn, "--prefix=true read locker/"}
	for user, wants := range map[string]map[string]want{
		"root": {}, "app": {},
		"viewer":  {"permission to lock": lock, "lock": {doctor.Fail, "First mend"}},
		"writer":  {"permission to lock": lock, "permission to inspect": inspect, "lock": {doctor.Fail, "First mend"}},
		"nothing": {"permission to lock": lock, "permission to inspect": inspect, "lock": {doctor.Fail, "First mend"}},
	} {
		t.Run(user, func(t *testing.T) {
			wants["members"] = alone
			onEtcd.examine(t, patient("etcd://"+user+":"+secret+"@"+c.Endpoints()[0]), wants)
		})
	}
	t.Run("another prefix", func(t *testing.T) {
		o := patient("etcd://app:" + secret + "@" + c.Endpoints()[0])
		o.Prefix = "a@b/"
		onEtcd.examine(t, o, map[string]want{"members": alone})
		o.Prefix = "other/"
		onEtcd.examine(t, o, map[string]want{
			"permission to lock":    {doctor.Fail, "readwrite other/"},
			"permission to inspect": {doctor.Warn, "read other/"},
			"members":               alone, "lock": {doctor.Fail, "First mend"},
		})
	})
	t.Run("wrong password", func(t *testing.T) {
		onEtcd.onlyConnect(t, patient("etcd://app:"+secret+"2@"+c.Endpoints()[0]), "Correct user and password")
	})
	t.Run("no user", func(t *testing.T) {
		onEtcd.onlyConnect(t, patient(urlOf(c.Endpoints()...)), "Correct user and password")
	})
}

func TestEtcdFarAway(t *testing.T) {
	t.Parallel()
	proxy := behind(t, etcdtest.Address(t))
	proxy.Set(faultproxy.Delay(200 * time.Millisecond))
	o := patient(urlOf(proxy.Addr()))
	o.TTL = time.Second
	onEtcd.examine(t, o, map[string]want{
		"round trip": {doctor.Fail, "longer TTL"}, "members": alone,
		"lock": consequence, "election timeout": consequence,
	})
}

func TestEtcdUnreachable(t *testing.T) {
	t.Parallel()
	hanging := behind(t, etcdtest.Address(t))
	hanging.Set(faultproxy.Hang())
	for name, addr := range map[string]string{
		"nobody": strangers.Nobody(t), "hangs": hanging.Addr(), "Redis": strangers.Redis(t),
	} {
		for _, user := range []string{"", "app:" + secret + "@"} {
			t.Run(name+" "+strings.TrimSuffix(user, ":"+secret+"@"), func(t *testing.T) {
				t.Parallel()
				do := map[string]string{
					"nobody": "Is the server running?", "hangs": "", "Redis": "Is it the right address?",
				}[name]
				o := patient("etcd://" + user + addr)
				if name == "hangs" {
					o = hasty(o.URL)
				}
				onEtcd.onlyConnect(t, o, do)
			})
		}
	}
}
