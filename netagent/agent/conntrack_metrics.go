package agent

import (
	"bytes"
	"os"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/kernel/sysctl"
)

// conntrackStatistics has a line for each processor, numbers in hexadecimal, below one with their names.
const conntrackStatistics = "/proc/net/stat/nf_conntrack"

// conntrackTable tells how full the kernel's table of connections is. Packets that find no room in it are
// dropped, those that policies allow too.
type conntrackTable struct{ statistics string }

var (
	descEntries = prometheus.NewDesc("braid_conntrack_entries", "Connections in the kernel's table.", nil, nil)
	descLimit   = prometheus.NewDesc("braid_conntrack_limit", "Connections that the kernel's table has room for.", nil, nil)
	descNoRoom  = prometheus.NewDesc("braid_conntrack_dropped_packets_total", "Packets dropped because their connections found no room in the kernel's table.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c conntrackTable) Describe(ch chan<- *prometheus.Desc) {
	ch <- descEntries
	ch <- descLimit
	ch <- descNoRoom
}

// Collect implements prometheus.Collector. What the kernel does not tell is left out.
func (c conntrackTable) Collect(ch chan<- prometheus.Metric) {
	for desc, name := range map[*prometheus.Desc]string{descEntries: "nf_conntrack_count", descLimit: "nf_conntrack_max"} {
		text, err := sysctl.Get("net/netfilter/" + name)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(text, 10, 64); err == nil {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n))
		}
	}
	if data, err := os.ReadFile(c.statistics); err == nil {
		if n, ok := sumColumn(data, "drop"); ok {
			ch <- prometheus.MustNewConstMetric(descNoRoom, prometheus.CounterValue, float64(n))
		}
	}
}

// sumColumn adds up a column of the statistics, false when there is no such column or a line that is not understood.
func sumColumn(data []byte, name string) (sum uint64, ok bool) {
	column := -1
	for i, line := range bytes.Split(bytes.TrimSpace(data), []byte("\n")) {
		words := bytes.Fields(line)
		if i == 0 {
			for j, w := range words {
				if string(w) == name {
					column = j
				}
			}
			continue
		}
		if column < 0 || column >= len(words) {
			return 0, false
		}
		n, err := strconv.ParseUint(string(words[column]), 16, 64)
		if err != nil {
			return 0, false
		}
		sum += n
	}
	return sum, column >= 0
}
