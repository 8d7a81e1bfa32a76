package doctor_test

import (
	"bytes"
	"context"
	"fmt"
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
	o := hasty(urlOf(c.Endpoints()...))
	o.Within = 20 * time.Second // a member that lives is to be reached in time, on a machine that is busy, too
	onEtcd.examine(t, o, map[string]want{
		"connect": {doctor.Fail, "Is the server running?"}, "members": {doctor.Warn, "Bring them back"},
		"leader": {doctor.Fail, "a majority of them runs"}, "lock": {doctor.Fail, "First mend"}, "alarms": unasked,
		"election timeout": unasked, "permission to lock": unasked, "permission to inspect": unasked, "round trip": unasked,
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

func TestEtcdDatabase(t *testing.T) {
	t.Parallel()
	const quota = 16 << 20
	c := etcdtest.New(t, etcdtest.Options{Flags: []string{fmt.Sprintf("--quota-backend-bytes=%d", quota)}})
	client := c.Client(t)
	value := strings.Repeat("x", 256<<10)
	for i := 0; ; i++ {
		if _, err := client.Put(t.Context(), fmt.Sprint("k", i), value); err != nil {
			t.Fatal(err)
		}
		if must(client.Status(t.Context(), c.Endpoints()[0]))(t).DbSize > quota/100*82 {
			break
		}
	}
	onEtcd.examine(t, patient(urlOf(c.Endpoints()...)), map[string]want{
		"database": {doctor.Warn, "--quota-backend-bytes"}, "members": alone,
	})
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
		"round trip": {doctor.Fail, "longer TTL"}, "lock": consequence, "members": alone, "election timeout": consequence,
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
