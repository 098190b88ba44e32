package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestRequestsAreGranted(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	var runtime any
	text := `{"ips": ["10.244.1.77/24", "fd00:10:244:1::4d"], "mac": "02:00:5E:10:00:01", "ipRanges": [[{"subnet": "10.9.0.0/24", "gateway": "10.9.0.254"}]],
		"dns": {"servers": ["10.96.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]}}`
	if err := json.Unmarshal([]byte(text), &runtime); err != nil {
		t.Fatal(err)
	}
	conf := h.with(map[string]any{"runtimeConfig": runtime, "args": map[string]any{"cni": map[string]any{"mac": "02:00:00:00:00:02"}}})
	out, failure := h.call("ADD", p.attach, conf)
	if failure != nil {
		t.Fatal(failure)
	}
	r := h.result(out)
	var got []string
	for _, ip := range r.IPs {
		got = append(got, ip.Address.String())
	}
	if s := strings.Join(got, " "); s != "10.9.0.1/32 10.244.1.77/32 fd00:10:244:1::4d/128" {
		t.Errorf("addresses %s", s)
	}
	if r.Interfaces[2].Mac != "02:00:5e:10:00:01" || deviceOf(t, p.NS, "eth0").HardwareAddr.String() != "02:00:5e:10:00:01" {
		t.Errorf("interface %v", r.Interfaces[2])
	}
	if r.DNS.Nameservers[0] != "10.96.0.10" || r.DNS.Search[0] != "svc.cluster.local" || r.DNS.Options[0] != "ndots:5" {
		t.Errorf("dns %v", r.DNS)
	}
	p.ping(t, "10.9.0.254")
	p.ping(t, "fd00:10:244:1::1")
	r.CNIVersion = "1.1.0"
	if _, failure := h.call("CHECK", p.attach, h.with(map[string]any{"prevResult": r, "runtimeConfig": runtime})); failure != nil {
		t.Errorf("CHECK: %v", failure)
	}
	second := newPod(t, "second")
	if _, failure := h.call("ADD", second.attach, conf); failure == nil || failure.Code != types.ErrTryAgainLater ||
		!strings.Contains(failure.Msg, "10.244.1.77 was asked for, and is a gateway or belongs to another pod (pod/eth0)") {
		t.Errorf("the same again: %v", failure)
	}
	if n := len(h.reserved()); n != 3 {
		t.Errorf("%d reservations", n)
	}
	h.del(p.attach)
	h.clean("after DEL")
}

// TestOptionsOfHostLocal gives what is written for it, and CHECK knows it.
func TestOptionsOfHostLocal(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	file := filepath.Join(h.dir, "resolv.conf")
	if err := os.WriteFile(file, []byte("# names\nnameserver 192.0.2.53\nsearch a.example\nsearch b.example c.example\noptions ndots:5 timeout:1\nsortlist 0.0.0.0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ipam := h.conf["ipam"].(map[string]any)
	ipam["resolvConf"] = file
	ipam["routes"] = []any{map[string]any{"dst": "192.0.2.0/24", "mtu": 1300, "priority": 7}, map[string]any{"dst": "::/0", "advmss": 1200}}
	r := h.add(p.attach)
	if text := fmt.Sprint(r.DNS); text != "{[192.0.2.53]  [b.example c.example] [ndots:5 timeout:1]}" {
		t.Errorf("dns %s", text)
	}
	for family, want := range map[string]string{"-4": "192.0.2.0/24 via 10.244.1.1 dev eth0 proto 66 metric 7 mtu 1300", "-6": "default via fd00:10:244:1::1 dev eth0 proto 66 metric 1024 advmss 1200"} {
		if out := p.Exec(t, "ip", family, "route"); !strings.Contains(out, want) || strings.Count(out, "default") != 1 {
			t.Errorf("routes\n%s\nwant %s", out, want)
		}
	}
	if r.Routes[2].MTU != 1300 && r.Routes[3].MTU != 1300 && r.Routes[4].MTU != 1300 {
		t.Errorf("result %v", r.Routes)
	}
	if failure := h.check(p.attach, r); failure != nil {
		t.Errorf("CHECK: %v", failure)
	}
	p.Exec(t, "ip", "route", "change", "192.0.2.0/24", "via", "10.244.1.1", "proto", "66", "metric", "7", "mtu", "1200")
	if failure := h.check(p.attach, r); failure == nil || !strings.Contains(failure.Details, "route 192.0.2.0/24 via 10.244.1.1 mtu 1300 metric 7 is missing") {
		t.Errorf("CHECK of another mtu: %v", failure)
	}
}

func TestRequestsInArguments(t *testing.T) {
	h := newHost(t)
	p := newPod(t, "pod")
	cmd, stdout, stderr := h.command("ADD", p.attach, h.with(nil))
	for i, v := range cmd.Env {
		if strings.HasPrefix(v, "CNI_ARGS=") {
			cmd.Env[i] = "CNI_ARGS=IP=10.244.1.9;MAC=02:00:00:00:00:09"
		}
	}
	err := h.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%v\n%s%s", err, stdout, stderr)
	}
	if r := h.result(stdout.String()); r.IPs[0].Address.String() != "10.244.1.9/32" || r.Interfaces[2].Mac != "02:00:00:00:00:09" {
		t.Errorf("result %v", r)
	}
}

func TestRequestErrors(t *testing.T) {
	for more, want := range map[string]string{
		`"runtimeConfig": {"ips": ["10.9.9.9"]}`:                         "runtimeConfig.ips has 10.9.9.9: expected an address of ipam.ranges",
		`"runtimeConfig": {"ips": ["here"]}`:                             `runtimeConfig.ips has "here": expected an address`,
		`"runtimeConfig": {"ips": ["10.244.1.9/99"]}`:                    `runtimeConfig.ips has "10.244.1.9/99"`,
		`"runtimeConfig": {"ips": ["10.244.1.9", "10.244.1.10"]}`:        "runtimeConfig.ips has 10.244.1.10 besides 10.244.1.9: expected one address of each list",
		`"args": {"cni": {"ips": ["::1"]}}`:                              "args.cni.ips has ::1",
		`"args": {"cni": {"mac": "01:00:00:00:00:01"}}`:                  `args.cni.mac is "01:00:00:00:00:01": expected the hardware address of one interface`,
		`"runtimeConfig": {"mac": "02:00:00:00:00:00:00:01"}`:            "runtimeConfig.mac is",
		`"runtimeConfig": {"ipRanges": [[{"subnet": "10.244.0.0/16"}]]}`: "expected no overlap",
		`"runtimeConfig": {"ipRanges": [[{"subnet": "10.244.0.0"}]]}`:    "ipam.ranges[0][0].subnet",
		`"runtimeConfig": {"mac": 7}`:                                    "runtimeConfig.mac is of type number: expected a string",
	} {
		_, err := parseConfig([]byte(conf(ranges46, ", "+more)))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", more, err, want)
		}
	}
}
