package main

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/braidnet/braid/cni/ipam"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/containernetworking/cni/pkg/types"
)

// conf is a configuration with the given keys at its end.
func conf(ipam, more string) string {
	return `{"cniVersion": "1.0.0", "name": "braid", "type": "braid", "ipam": {` + ipam + `}` + more + `}`
}

const ranges4, ranges46 = `"ranges": [[{"subnet": "10.244.1.0/24"}]]`,
	`"ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]]`

func TestConfigDefaults(t *testing.T) {
	c, err := parseConfig([]byte(conf(ranges46, "")))
	if err != nil {
		t.Fatal(err)
	}
	if c.Bridge != "braid0" || c.MTU != 0 || c.DataDir != ipam.DefaultDir || c.Prev != nil || len(c.Sets) != 2 {
		t.Errorf("got %+v", c)
	}
	if got := gatewayAddrs(c.Sets); !reflect.DeepEqual(got, []netip.Prefix{
		netip.MustParsePrefix("10.244.1.1/24"), netip.MustParsePrefix("fd00:10:244:1::1/64")}) {
		t.Errorf("gateways %v", got)
	}
}

func TestConfigOfHostLocal(t *testing.T) {
	c, err := parseConfig([]byte(conf(`"type": "host-local", "subnet": "10.1.0.0/16", "rangeStart": "10.1.2.3", "gateway": "10.1.0.254",
		"ranges": [[{"subnet": "fd00::/64"}]], "routes": [{"dst": "192.0.2.0/24"}, {"dst": "::/0", "gw": "fd00::1"}],
		"dataDir": "/somewhere"`, `, "runtimeConfig": {"ipRanges": [[{"subnet": "10.9.0.0/24"}]]}, "bridge": "br1", "mtu": 9000, "dns": {"nameservers": ["10.96.0.10"]}`)))
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Sets[0].String() + ", " + c.Sets[1].String() + " " + c.Sets[1][0].Gateway.String(); got != "10.9.0.1-10.9.0.254, 10.1.2.3-10.1.255.254 10.1.0.254" {
		t.Errorf("range %s", got)
	}
	if c.Bridge != "br1" || c.MTU != 9000 || c.DataDir != "/somewhere" || len(c.Routes) != 2 || c.DNS.Nameservers[0] != "10.96.0.10" {
		t.Errorf("got %+v", c)
	}
}

func TestConfigErrorsNameKeyAndExpectation(t *testing.T) {
	for _, c := range []struct {
		conf string
		code uint
		want string
	}{
		{`{"name": `, types.ErrDecodingFailure, "not valid JSON"},
		{conf("", ""), 7, "ipam.ranges is empty: expected a list of lists"},
		{conf(ranges4+`, "routes": [{"dst": "192.0.2.0/24", "mtu": -1}]`, ""), 7, "ipam.routes[0] has mtu -1"},
		{conf(ranges4+`, "routes": [{"dst": "192.0.2.0/24", "table": 5}]`, ""), 2, "ipam.routes[0].table is 5, which this plugin does not do"},
		{conf(`"ranges": [[]]`, ""), 7, "ipam.ranges[0] is empty: expected at least one range"},
		{conf(`"ranges": [{"subnet": "10.0.0.0/24"}]`, ""), 7, "ipam.ranges is of type object: expected a list"},
		{conf(`"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "10.0.0"}]]`, ""), 7, `ipam.ranges[0][1].subnet is "10.0.0": expected an address and a length`},
		{conf(`"ranges": [[{"subnet": "10.0.0.7/24"}]]`, ""), 7, "ipam.ranges[0][0].subnet is 10.0.0.7/24, which has host bits set: expected 10.0.0.0/24"},
		{conf(`"ranges": [[{"subnet": "10.0.0.0/24", "gateway": "x"}]]`, ""), 7, `ipam.ranges[0][0].gateway is "x": expected an address of 10.0.0.0/24`},
		{conf(`"ranges": [[{"subnet": "10.0.0.0/24", "rangeEnd": "10.0.1.0"}]]`, ""), 7, "ipam.ranges[0][0].rangeEnd is 10.0.1.0"},
		{conf(`"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/16"}]]`, ""), 7, "ipam.ranges[1][0] is 10.0.0.1-10.0.255.254: expected no overlap"},
		{conf(`"ranges": [[{"subnet": "::ffff:10.0.0.0/112"}]]`, ""), 7, "ipam.ranges[0][0].subnet"},
		{conf(ranges4+`, "type": "dhcp"`, ""), 7, `ipam.type is "dhcp": expected braid or host-local`},
		{conf(ranges4+`, "routes": [{"dst": "10.0.0.1"}]`, ""), 7, "ipam.routes[0].dst"},
		{conf(ranges4+`, "routes": [{"dst": "::/0"}]`, ""), 7, "expected a family that ipam.ranges has"},
		{conf(ranges4+`, "routes": [{"dst": "10.0.0.0/8", "gw": "10.244.1.9"}]`, ""), 7, "expected the gateway of a range"},
		{conf(ranges4, `, "mtu": "1450"`), 7, "mtu is of type string: expected a whole number"},
		{conf(ranges4, `, "mtu": 1450.5`), 7, "mtu is of type number 1450.5: expected a whole number"},
		{conf(ranges4, `, "mtu": 67`), 7, "mtu is 67: expected 68 to 65535"},
		{conf(ranges46, `, "mtu": 1279`), 7, "mtu is 1279: expected 1280 to 65535"},
		{conf(ranges4, `, "mtu": -1`), 7, "mtu is -1"},
		{conf(ranges4, `, "bridge": ""`), 7, `bridge is "": expected the name of an interface`},
		{conf(ranges4, `, "bridge": "a/b"`), 7, `bridge is "a/b"`},
		{conf(ranges4, `, "logLevel": "loud"`), 7, "expected debug, info, warn or error"},
		{conf(ranges4, `, "prevResult": {"cniVersion": "1.0.0", "ips": 7}`), 7, "prevResult: expected a result of version 1.0.0"},
		{`{"cniVersion": "1.0.0", "name": "../up", "ipam": {` + ranges4 + `}}`, 7, `name is "../up"`},
	} {
		_, err := parseConfig([]byte(c.conf))
		var e *types.Error
		if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Msg, c.want) {
			t.Errorf("%s\n got %v\nwant code %d, %s", c.conf, err, c.code, c.want)
		}
	}
}

func TestPodRoutesOfTwoAddressesInAFamily(t *testing.T) {
	lease := func(a, gw string) ipam.Lease {
		return ipam.Lease{Addr: netip.MustParseAddr(a), Gateway: netip.MustParseAddr(gw)}
	}
	got := podRoutes(&config{Routes: []link.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), MTU: 1300}, {Dst: netip.MustParsePrefix("192.0.2.0/24")}}},
		[]ipam.Lease{lease("10.0.0.2", "10.0.0.1"), lease("10.1.0.2", "10.1.0.1"), lease("10.0.0.3", "10.0.0.1")})
	var text []string
	for _, r := range got {
		text = append(text, r.String())
	}
	want := "10.0.0.1/32 on the link, 10.1.0.1/32 on the link, 0.0.0.0/0 via 10.0.0.1 mtu 1300, 192.0.2.0/24 via 10.0.0.1"
	if s := strings.Join(text, ", "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
}

func TestPodName(t *testing.T) {
	for args, want := range map[string]string{
		"": "",
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;FOO=bar": "shop/cart-0",
		"K8S_POD_NAMESPACE=shop;K8S_POD_NAME=cart-0;":                        "shop/cart-0",
		"FOO=bar":                     `CNI_ARGS has ["FOO=bar"]: expected K8S_POD_NAMESPACE and its like, or IgnoreUnknown=1`,
		"IgnoreUnknown=0;K8S_POD_UID": `CNI_ARGS has ["K8S_POD_UID"]`,
	} {
		got, _, err := podName(args)
		if err != nil {
			got = err.Error()
		}
		if got != want && !(err != nil && strings.HasPrefix(got, want)) {
			t.Errorf("%q: got %q, want %q", args, got, want)
		}
	}
}

func TestHostVethName(t *testing.T) {
	a, b := link.HostVethName("id", "eth0"), link.HostVethName("id", "eth1")
	if len(a) != 14 || !strings.HasPrefix(a, "brd") || a == b {
		t.Errorf("names %s and %s", a, b)
	}
}

// FuzzConfig: whatever comes in, the parser either says what is wrong in a
// CNI error or returns a configuration that ADD can rely on.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(conf(ranges46, `, "mtu": 1450, "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}]}`)))
	f.Add([]byte(conf(`"subnet": "10.0.0.0/30", "rangeStart": "10.0.0.2", "routes": [{"dst": "0.0.0.0/0"}]`, `, "dns": {}`)))
	f.Add([]byte(conf(`"ranges": [[{"subnet": "::/0", "gateway": "::1%eth0"}]]`, "")))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		var e *types.Error
		if err != nil {
			if !errors.As(err, &e) || e.Msg == "" {
				t.Errorf("no CNI error: %v", err)
			}
			return
		}
		if c.Bridge == "" || c.DataDir == "" || len(c.Sets) == 0 {
			t.Errorf("incomplete: %+v", c)
		}
		for _, set := range c.Sets {
			lease, ok := set.Pick(netip.Addr{}, func(a netip.Addr) bool { return a == set[0].First })
			for _, r := range set {
				if !r.Subnet.Contains(r.Gateway) || !r.Subnet.Contains(r.First) || !r.Subnet.Contains(r.Last) || r.Last.Less(r.First) {
					t.Errorf("range is not whole: %+v", r)
				}
			}
			if ok && !lease.Subnet.Contains(lease.Addr) {
				t.Errorf("lease outside its subnet: %+v", lease)
			}
		}
		if del, err := parseForDelete(data); err != nil || del.DataDir != c.DataDir || del.Bridge != c.Bridge {
			t.Errorf("DEL would look elsewhere: %+v, %v", del, err)
		}
	})
}
