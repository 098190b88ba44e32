package agent

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/kernel/sysctl"
)

// conntrackStatistics has a line for each processor, numbers in hexadecimal, below one with their names.
const conntrackStatistics = "/proc/net/stat/nf_conntrack"

// conntrackTable tells how full the kernel's table of connections is. Packets that find no room in it are
// dropped, those that policies allow too.
type conntrackTable struct{ statistics string }

var nodeConnections = conntrackTable{conntrackStatistics}

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
	for desc, name := range map[*prometheus.Desc]string{descEntries: "count", descLimit: "max"} {
		if n, ok := c.number(name); ok {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n))
		}
	}
	if n, ok := c.noRoom(); ok {
		ch <- prometheus.MustNewConstMetric(descNoRoom, prometheus.CounterValue, float64(n))
	}
}

func (conntrackTable) number(name string) (uint64, bool) {
	text, err := sysctl.Get("net/netfilter/nf_conntrack_" + name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(text, 10, 64)
	return n, err == nil
}

// noRoom is how many packets were dropped.
func (c conntrackTable) noRoom() (uint64, bool) {
	data, err := os.ReadFile(c.statistics)
	if err != nil {
		return 0, false
	}
	return sumColumn(data, "drop")
}

const (
	// tableLook is how often it is looked whether the table is full.
	tableLook = 5 * time.Second
	// tableAlarm is how much of it, in percent, has to be in use to say so.
	tableAlarm = 95
)

// alarm says what is wrong with the table; empty while there is room.
func (c conntrackTable) alarm() string {
	entries, ok := c.number("count")
	limit, too := c.number("max")
	if !ok || !too || limit == 0 || entries*100 < limit*tableAlarm {
		return ""
	}
	dropped, _ := c.noRoom()
	return fmt.Sprintf("the kernel's table of connections is full: %d of %d. Who finds no room in it cannot connect, however policies are (packets dropped so far: %d). "+
		"conntrack -S and conntrack -L say who fills it; conntrack-max-per-core makes it larger", entries, limit, dropped)
}

// watch logs when the table becomes full, and when there is room again, until ctx ends.
func (c conntrackTable) watch(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(tableLook)
	defer tick.Stop()
	full := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		switch alarm := c.alarm(); {
		case alarm != "" && !full:
			full = true
			log.Error(alarm)
		case alarm == "" && full:
			full = false
			log.Info("there is room again in the kernel's table of connections")
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
