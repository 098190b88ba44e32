package scenario

import "regexp"

// fault is one thing that happens to node n1.
type fault struct {
	name   string
	on     string // worlds in which it can happen, separated by spaces; empty: all
	do     string // shell commands, on the node
	undo   string // commands after which everything has to be as before, where that is not so after the repair
	other  bool   // what works again is not what was there before, until undo
	untold bool   // no event tells of it, or the kernel itself gets over it in its own time
	mild   bool   // may leave nothing to repair
	seldom bool   // tried with -faults.all only
}

// shellWords are commands for the scripts. renew is what a manager of the node's network does when a device comes up.
const shellWords = `
renew() {
	ip link set eth0 up
	ip addr replace 192.168.77.11/24 brd + dev eth0; ip addr replace fd77::11/64 dev eth0 nodad
	ip route replace default via 192.168.77.1; ip -6 route replace default via fd77::1
}
devices() { printf '%s\n' $DEV4 $DEV6 | sort -u; }
`

// The first group is of devices that the agent makes.
const tunnels = "vxlan udp wireguard"

// And of routes that it makes.
const routed = "vxlan host-gw udp wireguard"

var faults = []fault{
	{name: "devices deleted", on: tunnels, do: `for d in $(devices); do ip link del $d; done`},
	{name: "devices down", on: tunnels, do: `for d in $(devices); do ip link set $d down; done`},
	{name: "devices bounced", on: tunnels, do: `for d in $(devices); do ip link set $d down; ip link set $d up; done`},
	{name: "MTU of a device changed", on: tunnels, do: `ip link set $DEV6 mtu 1280`},
	{name: "MAC address of a device changed", on: "vxlan", do: `ip link set $DEV4 address 02:00:00:00:00:99`},
	{name: "device replaced by one that learns and floods", on: "vxlan",
		do: `ip link del $DEV4; ip link add $DEV4 type vxlan id 1 dstport 8472 dev eth0 local 192.168.77.11 remote 192.168.77.99; ip link set $DEV4 up`},
	{name: "device replaced by one of another network", on: "vxlan",
		do: `ip link del $DEV6; ip link add $DEV6 type vxlan id 7 dstport 8472 dev eth0 local fd77::11 nolearning; ip link set $DEV6 up`},
	{name: "device replaced by one with a single queue", on: "udp wireguard", do: `ip link del $DEV4; ip tuntap add $DEV4 mode tun; ip link set $DEV4 up`},
	{name: "learning switched on", on: "vxlan", do: `ip link set $DEV4 type vxlan learning`},
	{name: "IPv6 switched off on a device", on: tunnels, do: `echo 1 >/proc/sys/net/ipv6/conf/$DEV6/disable_ipv6`},
	{name: "IPv6 switched off on the node, and on again", on: tunnels,
		do: `echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; renew; ip addr replace fd00:10:244:1::1/64 dev braid0 nodad`},
	{name: "addresses of the devices deleted", on: tunnels, do: `for d in $(devices); do ip addr flush dev $d scope global; done`},
	{name: "foreign addresses on the devices", on: tunnels, do: `ip addr add 10.244.2.9/32 dev $DEV4; ip addr add fd00:10:244:2::9/128 dev $DEV6 nodad`},

	{name: "routes deleted", on: routed, do: `ip route del 10.244.2.0/24; ip -6 route del fd00:10:244:2::/64`},
	{name: "routes replaced", on: routed,
		do: `ip route replace 10.244.2.0/24 via 192.168.77.99 dev eth0 proto static; ip -6 route del fd00:10:244:2::/64; ip -6 route add unreachable fd00:10:244:2::/64 metric 1024`},
	{name: "routes of ours made to lead elsewhere", on: routed, seldom: true,
		do: `ip route replace 10.244.2.0/24 via 192.168.77.99 dev eth0 proto 66; ip -6 route replace fd00:10:244:2::/64 via fd77::99 dev eth0 proto 66`},
	{name: "stray routes of ours", on: routed, seldom: true, do: `ip route add 10.99.0.0/16 via 192.168.77.99 proto 66; ip -6 route add fd00:99::/64 via fd77::99 proto 66`},

	{name: "neighbours and forwarding entries deleted", on: "vxlan",
		do: `for d in $(devices); do ip neigh flush dev $d nud permanent; bridge fdb flush dev $d permanent; done`},
	{name: "neighbours and forwarding entries changed", on: "vxlan",
		do: `ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:99 nud permanent dev $DEV4; mac=$(bridge fdb show dev $DEV6 | cut -d' ' -f1 | head -n 1)
			bridge fdb replace $mac dev $DEV6 dst fd77::99`},
	{name: "stray neighbours and forwarding entries", on: "vxlan", seldom: true,
		do: `ip neigh add 10.244.9.0 lladdr 02:00:00:00:00:99 nud permanent dev $DEV4; bridge fdb append 00:00:00:00:00:00 dev $DEV4 dst 192.168.77.99`},
	{name: "stray device of ours", on: routed, seldom: true, do: `ip link add braid.old type vxlan id 99 dstport 4799 dev eth0`},

	{name: "bridge of pods deleted", do: `ip link del braid0`},
	{name: "bridge of pods down, without addresses", do: `ip link set braid0 down; ip addr flush dev braid0 scope global; ip link set braid0 up`},
	{name: "link of a pod taken off the bridge, and down", do: `for l in $(ls /sys/class/net/braid0/brif); do ip link set $l nomaster; ip link set $l down; done`},
	{name: "routes of pods deleted", do: `ip route del 10.244.1.0/24 dev braid0; ip -6 route del fd00:10:244:1::/64 dev braid0`, seldom: true},

	// sysctl --system loads the machine's files again, of which few say that it forwards.
	{name: "IP forwarding switched off", on: routed, do: `echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding`},

	// systemd-networkd, with ManageForeignRoutes= and ManageForeignRoutingPolicyRules= as they are by default, takes away what
	// it did not make itself when it starts, reloads or a carrier comes, and addresses of devices that a .network file matches.
	{name: "systemd-networkd restarted", on: routed,
		do: `for f in -4 -6; do ip $f route flush table main proto 66; done; for d in $(devices | grep braid); do ip addr flush dev $d scope global; done`},
	// NetworkManager takes a device that somebody makes managed: down, without addresses and IPv6, and up again.
	{name: "NetworkManager restarted", on: tunnels,
		do: `for d in $(devices); do ip link set $d down; ip addr flush dev $d; echo 1 >/proc/sys/net/ipv6/conf/$d/disable_ipv6; ip link set $d up; done`},

	{name: "nft flush ruleset", do: `nft flush ruleset`},
	{name: "iptables flushed", do: `for t in filter nat mangle raw; do iptables -t $t -F; ip6tables -t $t -F; done`, on: "host-gw none"},
	{name: "iptables flushed, also of empty chains", do: `for i in iptables ip6tables; do for t in filter nat mangle raw; do $i -t $t -F; $i -t $t -X || true; $i -t $t -Z; done; done`, on: "host-gw none", seldom: true},
	// firewalld with its own backend iptables: policies, then every table of both families, and policies again.
	{name: "firewalld reloaded, backend iptables", on: "host-gw none", do: `
		for i in iptables ip6tables; do for c in INPUT OUTPUT FORWARD; do $i -P $c DROP; done; done
		for i in iptables ip6tables; do for t in security raw mangle nat filter; do $i -t $t -F; $i -t $t -X || true; $i -t $t -Z; done; done
		for i in iptables ip6tables; do for c in INPUT OUTPUT FORWARD; do $i -P $c ACCEPT; done; done`},
	// Docker closes FORWARD when it starts, and so do ufw and others. Tables are there only where iptables is in use.
	{name: "FORWARD of iptables closed", on: tunnels, other: true, do: `iptables -P FORWARD DROP; ip6tables -P FORWARD DROP`,
		undo: `nft delete table ip filter; nft delete table ip6 filter`},
	{name: "FORWARD of iptables closed and flushed", on: "host-gw none", other: true, do: `for i in iptables ip6tables; do $i -P FORWARD DROP; $i -F FORWARD; done`,
		undo: `iptables -P FORWARD ACCEPT; ip6tables -P FORWARD ACCEPT`},
	// With nftables it only touches tables of its own, and keeps everything out meanwhile that is not known.
	{name: "firewalld reloaded, backend nftables", mild: true, seldom: true, other: true, on: "vxlan", do: `
		nft add table inet firewalld
		nft 'table inet firewalld_policy_drop { chain filter_forward { type filter hook forward priority 9; policy drop; ct state established,related accept; }; }'
		nft delete table inet firewalld; nft delete table inet firewalld_policy_drop`},

	{name: "uplink down and up", untold: true, mild: true, do: `ip link set eth0 down; renew`},
	{name: "uplink flapping", untold: true, mild: true, do: `for i in 1 2 3; do ip link set eth0 down; ip link set eth0 up; done; renew`, seldom: true},
	{name: "uplink deleted and made anew", untold: true, do: `
		mac=$(cat /sys/class/net/eth0/address); ip link del eth0; ip link add eth0 address $mac type veth peer name n1 netns $NET
		nsenter --net=/run/netns/$NET ip link set n1 master br0 up; renew`},
	{name: "addresses of the uplink taken away and given back", mild: true, do: `ip addr flush dev eth0 scope global; renew`},
}

const stateScript = `
ip -d -o link show | grep -E '^[0-9]+: braid\.' || true
ip -o link show type bridge | sed 's/\\.*//'
ip -o link show type veth | grep ' master braid0' | sed 's/\\.*//' || true
ip -o addr show | grep -E ' (braid[.0-9a-z]*|eth0) '
for f in -4 -6; do ip $f rule; ip $f route show table main; done
ip neigh show nud permanent | grep braid || true
bridge fdb show | grep 'dev braid\.' || true
for s in net.ipv4.ip_forward net.ipv6.conf.all.forwarding; do echo $s=$(sysctl -n $s); done
nft -s list ruleset
`

var (
	// unstable are numbers that mean nothing, or change by themselves.
	unstable = regexp.MustCompile(`(?m)^\d+: |@if\d+|@eth0|valid_lft \S+|preferred_lft \S+|\\|\[\d+:\d+\]|^# (Generated|Completed).*$|link-netns \S+|link-netnsid \d+|state (UP|UNKNOWN) |elements = \{|^Warning:.*$`)
	// ignored are lines of which the kernel makes others each time.
	ignored = regexp.MustCompile(`^\}?$|inet6 fe80|^fe80|^ff00|^# `)
)

// faultPods are a client and a server on each of two nodes, a service, and a policy that lets everything be.
const faultPods = `
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: a}}
spec:
  nodeName: n1
  containers: [{name: c, image: none, ports: [{containerPort: 80, hostPort: 8088}, {containerPort: 80, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: b}}
spec:
  nodeName: n2
  containers: [{name: c, image: none, ports: [{containerPort: 80}, {containerPort: 80, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: b}
  ipFamilyPolicy: PreferDualStack
  ports: [{port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a}
spec:
  podSelector: {matchLabels: {app: a}}
  ingress: [{}]
`
