package lab

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/netagent/lab/cluster"
)

// writePodFiles writes the pod's folder: what a kubelet would mount into its containers.
// sandbox.json comes last, since `exec` finds the pod by it.
func writePodFiles(o *Options, pod cluster.PodSandbox, s *sandbox) error {
	dir := o.paths().pod(pod.Namespace, pod.Name)
	if err := makeDirs(dir); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "resolv.conf"), resolverOf(o, pod).file()); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "hosts"), hostsFile(pod, s)); err != nil {
		return err
	}
	return s.save(dir)
}

// resolverConf is the content of a resolv.conf.
type resolverConf struct {
	servers, search, options []string
}

func (r resolverConf) file() (out []byte) {
	for _, s := range r.servers {
		out = fmt.Appendf(out, "nameserver %s\n", s)
	}
	if len(r.search) > 0 {
		out = fmt.Appendf(out, "search %s\n", strings.Join(r.search, " "))
	}
	if len(r.options) > 0 {
		out = fmt.Appendf(out, "options %s\n", strings.Join(r.options, " "))
	}
	return out
}

// outsideResolver is how the nodes themselves resolve.
func outsideResolver(o *Options) (r resolverConf) {
	for _, f := range o.families() {
		r.servers = append(r.servers, f.outside.String())
	}
	return r
}

// resolverOf follows spec.dnsPolicy and spec.dnsConfig as a kubelet does
// (https://kubernetes.io/docs/concepts/services-networking/dns-pod-service/).
func resolverOf(o *Options, pod cluster.PodSandbox) (r resolverConf) {
	switch policy := pod.DNSPolicy; {
	case policy == corev1.DNSNone:
	case policy == corev1.DNSDefault, pod.HostNetwork && policy != corev1.DNSClusterFirstWithHostNet:
		r = outsideResolver(o)
	default:
		r = resolverConf{
			servers: []string{o.families()[0].dns.String()},
			search:  []string{pod.Namespace + ".svc." + dnsZone, "svc." + dnsZone, dnsZone},
			options: []string{"ndots:5"},
		}
	}
	if pod.DNSConfig != nil {
		r.add(pod.DNSConfig)
	}
	return r
}

// add merges a pod's own settings: an option of a name replaces the policy's.
func (r *resolverConf) add(c *corev1.PodDNSConfig) {
	union := func(list *[]string, more []string) {
		for _, m := range more {
			if !slices.Contains(*list, m) {
				*list = append(*list, m)
			}
		}
	}
	union(&r.servers, c.Nameservers)
	union(&r.search, c.Searches)
	for _, o := range c.Options {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		r.options = slices.DeleteFunc(r.options, func(have string) bool {
			name, _, _ := strings.Cut(have, ":")
			return name == o.Name
		})
		r.options = append(r.options, text)
	}
}

// hostsFile is what a kubelet writes as a pod's /etc/hosts.
func hostsFile(pod cluster.PodSandbox, s *sandbox) []byte {
	out := []byte("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	name := s.Hostname
	if pod.Subdomain != "" && !pod.HostNetwork {
		name = fmt.Sprintf("%s.%s.%s.svc.%s\t%s", s.Hostname, pod.Subdomain, pod.Namespace, dnsZone, s.Hostname)
	}
	for _, ip := range s.IPs {
		out = fmt.Appendf(out, "%s\t%s\n", ip, name)
	}
	for _, a := range pod.HostAliases {
		out = fmt.Appendf(out, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return out
}
